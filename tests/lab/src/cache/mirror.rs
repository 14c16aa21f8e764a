//! Which Debian mirror this machine uses.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The archive that the machine's own sources name.
#[derive(Debug, PartialEq, Eq)]
pub struct Mirror {
    uri: String,
    signed_by: Option<String>,
}

impl Mirror {
    /// The first one that the sources name, in either of their two forms.
    pub fn of_this_machine() -> Result<Self> {
        let mut texts = Vec::new();
        let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
        if let Ok(parts) = fs::read_dir("/etc/apt/sources.list.d") {
            files.extend(parts.flatten().map(|entry| entry.path()));
        }
        files.sort();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|e| e.to_str()) {
                Some("sources") => texts.extend(deb822(&text)),
                Some("list") => texts.extend(one_line(&text)),
                _ => {}
            }
        }
        texts
            .into_iter()
            .find(|(_, suites)| suites.iter().all(|s| !s.contains("security")))
            .map(|(m, _)| m)
            .context(
                "found no Debian mirror in this machine's apt sources; the lab runs on Debian 12 or later",
            )
    }

    /// A sources file for another suite of it.
    pub fn source(&self, suite: &str) -> String {
        let signed = self.signed_by.as_ref().map(|key| format!("Signed-By: {key}\n")).unwrap_or_default();
        format!("Types: deb deb-src\nURIs: {}\nSuites: {suite}\nComponents: main\n{signed}", self.uri)
    }
}

type Found = (Mirror, Vec<String>);

fn looks_like_debian(uri: &str, components: &[&str]) -> bool {
    uri.trim_end_matches('/').ends_with("/debian") && components.contains(&"main")
}

fn deb822(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza.lines().filter(|l| !l.starts_with('#')).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        if field("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no")) {
            continue;
        }
        let (Some(uris), Some(suites), Some(components)) =
            (field("URIs"), field("Suites"), field("Components"))
        else {
            continue;
        };
        let Some(uri) = uris.split_whitespace().next() else { continue };
        if looks_like_debian(uri, &components.split_whitespace().collect::<Vec<_>>()) {
            // A key that is written out in the stanza cannot be taken over by name.
            let signed_by = field("Signed-By").filter(|key| key.starts_with('/'));
            let suites = suites.split_whitespace().map(str::to_owned).collect();
            found.push((Mirror { uri: uri.to_owned(), signed_by }, suites));
        }
    }
    found
}

fn one_line(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let Some(rest) = line.strip_prefix("deb ") else { continue };
        let (options, rest) = match rest.trim_start().strip_prefix('[').and_then(|r| r.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let words: Vec<&str> = rest.split_whitespace().collect();
        if words.len() < 3 || !looks_like_debian(words[0], &words[2..]) {
            continue;
        }
        let signed_by =
            options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned);
        found.push((Mirror { uri: words[0].to_owned(), signed_by }, vec![words[1].to_owned()]));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_sources_are_understood() {
        let modern = "Types: deb\n# a comment\nURIs: http://mirror.test/debian\nSuites: bookworm bookworm-updates\n\
                      Components: main\nSigned-By: /usr/share/keyrings/k.gpg\n\nTypes: deb\n\
                      URIs: http://mirror.test/debian-security\nSuites: bookworm-security\nComponents: main\n";
        let found = deb822(modern);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0.uri, "http://mirror.test/debian");
        assert_eq!(found[0].0.signed_by.as_deref(), Some("/usr/share/keyrings/k.gpg"));

        let classic = "# deb http://no.test/debian x main\ndeb [arch=amd64 signed-by=/k.gpg] https://m.test/debian/ trixie main contrib\n\
                       deb https://other.test/apt stable main\n";
        let found = one_line(classic);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].0,
            Mirror { uri: "https://m.test/debian/".into(), signed_by: Some("/k.gpg".into()) }
        );
        assert!(found[0].0.source("sid").contains("Suites: sid\n"));
    }

    #[test]
    fn disabled_and_foreign_entries_are_passed_over() {
        assert!(
            deb822("Enabled: no\nTypes: deb\nURIs: http://m.test/debian\nSuites: x\nComponents: main\n")
                .is_empty()
        );
        assert!(deb822("Types: deb\nURIs: http://m.test/ubuntu\nSuites: x\nComponents: main\n").is_empty());
        assert!(one_line("deb http://m.test/debian\n").is_empty());
    }
}
