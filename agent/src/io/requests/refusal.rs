//! Refusals of writes by admission, which name what refused. The API server says so in its message alone.

use std::fmt;

use kube::core::Status;

/// An admission webhook or policy stands in the way of our writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// Its name, as in its configuration.
    pub name: String,
    /// A webhook, else a ValidatingAdmissionPolicy.
    pub webhook: bool,
    /// What the API server said.
    pub message: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.webhook { "admission webhook" } else { "ValidatingAdmissionPolicy" };
        write!(f, "{kind} {}: {}", self.name, self.message)
    }
}

/// Longest message that is kept, in characters.
const MAX_MESSAGE: usize = 300;
/// What comes before the name: webhooks that refuse, webhooks that can't be asked, policies.
/// (`k8s.io/apiserver/pkg/admission/plugin`: webhook/errors, webhook/generic, policy/validating.)
const FORMS: [(&str, char, bool); 3] = [
    ("admission webhook \"", '"', true),
    ("failed calling webhook \"", '"', true),
    ("ValidatingAdmissionPolicy '", '\'', false),
];

/// The refusal in an answer, if it is one. A missing right is none.
#[must_use]
pub fn of(status: &Status) -> Option<Refusal> {
    let named = |(before, quote, webhook): (&str, char, bool)| {
        let (_, rest) = status.message.split_once(before)?;
        let (name, _) = rest.split_once(quote)?;
        // Names of webhooks and policies are DNS names.
        let plausible = !name.is_empty()
            && name.len() <= 253
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        let message = status.message.chars().take(MAX_MESSAGE).collect();
        plausible.then(|| Refusal { name: name.to_owned(), webhook, message })
    };
    FORMS.into_iter().find_map(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_what_refuses_is_found() {
        let name =
            |message: &str| of(&Status::failure(message, "")).map(|refusal| (refusal.name, refusal.webhook));
        let named = |name: &str, webhook| Some((name.to_owned(), webhook));
        assert_eq!(
            name("admission webhook \"validate.kyverno.svc-fail\" denied the request: no"),
            named("validate.kyverno.svc-fail", true)
        );
        assert_eq!(
            name("Internal error occurred: failed calling webhook \"a.b.c\": failed to call webhook: Post x"),
            named("a.b.c", true)
        );
        assert_eq!(
            name(
                "encryptionpeers \"b\" is forbidden: ValidatingAdmissionPolicy 'own-node' with binding 'x' denied request: y"
            ),
            named("own-node", false)
        );
        assert_eq!(
            name("encryptionpeers.secureoverlay.io \"a\" is forbidden: User \"x\" cannot create"),
            None
        );
        assert_eq!(name("admission webhook \"a b\" denied"), None);
        assert_eq!(name("admission webhook \""), None);
    }
}
