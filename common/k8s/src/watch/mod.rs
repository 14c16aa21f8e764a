//! One watch for all kinds of objects: a list, then its changes, for as long as the reader listens.
//!
//! kube's watcher is not used, for three reasons. It keeps bookmarks to itself, so that silence can't be noticed from
//! outside. It drops `resourceVersion=0` where a page size is set, so that each list reads etcd. One object that does
//! not decode fails its whole list.
//!
//! Lists are at resourceVersion 0, from the API server's cache. They have no page size: servers ignore it there (seen
//! with 1.20 and 1.37). Objects are read one by one while the list is decoded, so that only what is kept takes memory.
//!
//! **Silence.** A server sends bookmarks only while it has a version above that at which the watch began: a watch on
//! which nothing has happened yet brings none (seen for 16 min with 1.20 and 1.37). It is not to cost a list of all
//! objects every few minutes. So a silent watch first asks for a list without objects, from the same cache: it names
//! the version of the last change of these objects. If that is the version that was seen last, nothing was missed.
//!
//! **A failure.** A server that was restarted after its store was put back takes a watch at a version that it has not
//! reached, and brings nothing. So soon after a watch that follows a failed one, the same question is asked, and only an
//! older answer leads to a list: a restart alone costs none.

mod pace;
mod request;

use futures::StreamExt;
use kube::{Client, Resource, core::WatchEvent};
use rand::{TryRng, rngs::SysRng};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, sleep, sleep_until, timeout_at},
};

pub use self::pace::SILENCE;
use self::{
    pace::{AFTER_FAILURE, Failures, LONGEST_LIST_PAUSE, LONGEST_WATCH_PAUSE, SPREAD, older},
    request::{List, ListError},
};
use crate::{
    client::describe,
    names::{AGENT_LABEL, DAEMON_SET, NAMESPACE, SECRET},
    object::{Content, Object},
};

/// Objects in one answer of a list past the cache.
const PAGE: u32 = 500;

/// What the reader of a watch is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Update<T> {
    /// All objects that there are: what was known and is not among them is gone.
    List {
        /// The objects.
        objects: Vec<Object<T>>,
        /// The server's history went back (a restored backup), and is behind what was seen before.
        went_back: bool,
    },
    /// An object was created or changed.
    Applied(Object<T>),
    /// An object was deleted.
    Deleted(Object<T>),
    /// Nothing changed; the API server answers.
    Heard,
    /// The API server can't be read. What is known stays.
    Failed(Failure),
}

/// Why the API server can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words, without the content of any object.
    pub message: String,
    /// The HTTP status, where there was an answer. 404: the definition of these objects is missing.
    pub code: Option<u16>,
}

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    path: String,
    field_selector: Option<String>,
    label_selector: Option<String>,
}

impl Source {
    /// All objects of a cluster-scoped kind.
    #[must_use]
    pub fn cluster<K: Resource<DynamicType = ()>>() -> Self {
        Self { path: K::url_path(&(), None), field_selector: None, label_selector: None }
    }

    /// All objects of a kind in our namespace, or those that a field selector leaves.
    #[must_use]
    pub fn namespaced<K: Resource<DynamicType = ()>>(field_selector: Option<&str>) -> Self {
        Self {
            path: K::url_path(&(), Some(NAMESPACE)),
            field_selector: field_selector.map(str::to_owned),
            label_selector: None,
        }
    }

    /// The Pods of the agents.
    #[must_use]
    pub fn agent_pods() -> Self {
        let label_selector = Some(format!("{AGENT_LABEL}={DAEMON_SET}"));
        Self { label_selector, ..Self::namespaced::<k8s_openapi::api::core::v1::Pod>(None) }
    }

    /// As few of its objects as can be asked for: for the version alone. Rights to one object go by its name.
    fn fewest(&self) -> Self {
        let none = || "metadata.name=none".to_owned();
        Self { field_selector: Some(self.field_selector.clone().unwrap_or_else(none)), ..self.clone() }
    }

    /// The Secret with the key ring.
    #[must_use]
    pub fn ring() -> Self {
        Self::namespaced::<k8s_openapi::api::core::v1::Secret>(Some(&format!("metadata.name={SECRET}")))
    }
}

/// Lists what there is now, in pages, past every cache of the API server.
///
/// # Errors
/// Where a page is refused, or does not come.
pub async fn list_by_quorum<T: Content>(
    client: &Client,
    source: &Source,
) -> Result<Vec<Object<T>>, kube::Error> {
    quorum(client, source).await.map(|(objects, _)| objects).map_err(|failed| failed.error)
}

/// The objects, and the version that all pages are of.
async fn quorum<T: Content>(client: &Client, source: &Source) -> Result<(Vec<Object<T>>, String), ListError> {
    let (mut all, mut next) = (Vec::new(), String::new());
    loop {
        let query =
            if next.is_empty() { format!("limit={PAGE}") } else { format!("limit={PAGE}&continue={next}") };
        let page: List<T> = request::list(client, source, &query).await?;
        page.next().clone_into(&mut next);
        let version = page.version().to_owned();
        all.extend(page.items);
        if next.is_empty() {
            return Ok((all, version));
        }
    }
}

/// Tells `updates` what there is and every change, until it is closed.
pub async fn follow<T: Content>(client: Client, source: Source, updates: Sender<Update<T>>) {
    let (newest, cached) = (String::new(), String::new());
    Follower { client, source, updates, newest, cached, heard: Instant::now(), failed: false }.run().await;
}

struct Follower<T> {
    client: Client,
    source: Source,
    updates: Sender<Update<T>>,
    /// The version that was seen last: the next watch begins there.
    newest: String,
    /// The version that the server's cache had for these objects. Below that of a list past the cache.
    cached: String,
    /// When the last list, event or bookmark came.
    heard: Instant,
    /// The last watch failed: the server may be another one by now.
    failed: bool,
}

/// The reader has gone.
struct Closed;

/// Why a watch has ended.
enum End {
    /// Start another one at the newest version.
    Again,
    /// The same, after a failure.
    Failed,
    /// List anew.
    List,
}

impl<T: Content> Follower<T> {
    async fn run(mut self) {
        let (mut lists, mut watches) = (Failures::default(), Failures::default());
        loop {
            match self.list().await {
                Ok(list) => {
                    lists.reset();
                    if self.tell(list).await.is_err() || self.watch(&mut watches).await.is_err() {
                        return;
                    }
                }
                Err(ListError { error, retry_after }) => {
                    if self.fail(&error).await.is_err() {
                        return;
                    }
                    let pause = lists.pause(LONGEST_LIST_PAUSE, retry_after, fraction());
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = self.updates.closed() => return,
                    }
                }
            }
        }
    }

    /// A list to be believed. One that is older than what was seen is not: the server may lag behind. What etcd holds is
    /// true whatever its version: a history that went back may have caught up with what was seen.
    async fn list(&mut self) -> Result<Update<T>, ListError> {
        let list: List<T> = request::list(&self.client, &self.source, "resourceVersion=0").await?;
        let (cached, seen) = (list.version().to_owned(), std::mem::take(&mut self.newest));
        let listed = if older(&cached, &seen) {
            drop(list);
            quorum(&self.client, &self.source).await
        } else {
            Ok((list.items, cached.clone()))
        };
        let (objects, newest) = listed.inspect_err(|_| self.newest.clone_from(&seen))?;
        let went_back = older(&newest, &seen);
        (self.newest, self.cached, self.heard) = (newest, cached, Instant::now());
        Ok(Update::List { objects, went_back })
    }

    /// Passes on what changes after the list.
    async fn watch(&mut self, failures: &mut Failures) -> Result<(), Closed> {
        loop {
            let (before, started) = (self.heard, Instant::now());
            let end = self.watch_once().await?;
            self.failed |= matches!(end, End::Failed);
            if self.heard > before || started.elapsed() > LONGEST_WATCH_PAUSE {
                failures.reset();
            }
            // A version may be forgotten as soon as it was listed: a list, too, is not asked for in a loop.
            sleep(failures.pause(LONGEST_WATCH_PAUSE, None, fraction())).await;
            if matches!(end, End::List) {
                return Ok(());
            }
        }
    }

    async fn watch_once(&mut self) -> Result<End, Closed> {
        let spread = SPREAD.mul_f64(fraction());
        let silent_at = |heard: Instant| heard + SILENCE + spread;
        let watching = request::watch(&self.client, &self.source, &self.newest, fraction());
        let mut stream = match timeout_at(silent_at(self.heard), watching).await {
            Err(_) => return Ok(End::List),
            Ok(Err(error)) => {
                self.fail(&error).await?;
                return Ok(if gone(&error) { End::List } else { End::Failed });
            }
            Ok(Ok(stream)) => stream,
        };
        let mut doubted =
            std::mem::take(&mut self.failed).then(|| Instant::now() + AFTER_FAILURE.mul_f64(fraction()));
        loop {
            let item = tokio::select! {
                item = stream.next() => item,
                () = sleep_until(doubted.unwrap_or_else(Instant::now)), if doubted.is_some() => {
                    doubted = None;
                    if self.is_behind().await {
                        return Ok(End::List);
                    }
                    continue;
                }
                () = sleep_until(silent_at(self.heard)) => {
                    if !self.unchanged().await {
                        return Ok(End::List);
                    }
                    self.heard = Instant::now();
                    self.tell(Update::Heard).await?;
                    continue;
                }
                () = self.updates.closed() => return Err(Closed),
            };
            let update = match item {
                None => return Ok(End::Again),
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => Update::Applied(object),
                Some(Ok(WatchEvent::Deleted(object))) => Update::Deleted(object),
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    self.see(bookmark.metadata.resource_version);
                    Update::Heard
                }
                Some(Ok(WatchEvent::Error(status))) => {
                    if status.code == 410 {
                        return Ok(End::List);
                    }
                    self.fail(&kube::Error::Api(status)).await?;
                    return Ok(End::Again);
                }
                Some(Err(error)) => {
                    self.fail(&error).await?;
                    return Ok(End::Failed);
                }
            };
            if let Update::Applied(object) | Update::Deleted(object) = &update {
                self.see(object.meta.resource_version.clone());
            }
            self.tell(update).await?;
        }
    }

    /// Whether the server's cache is at the version that was seen last.
    async fn unchanged(&self) -> bool {
        let list = request::list::<T>(&self.client, &self.source.fewest(), "resourceVersion=0").await;
        list.is_ok_and(|list| list.version() == self.cached)
    }

    /// Whether the server's cache is older than what was seen: its history may have gone back.
    async fn is_behind(&self) -> bool {
        let list = request::list::<T>(&self.client, &self.source.fewest(), "resourceVersion=0").await;
        list.is_ok_and(|list| older(list.version(), &self.newest))
    }

    fn see(&mut self, version: String) {
        self.heard = Instant::now();
        // Without a version the next watch begins where the last one that had one was.
        if !version.is_empty() {
            self.cached.clone_from(&version);
            self.newest = version;
        }
    }

    async fn fail(&self, error: &kube::Error) -> Result<(), Closed> {
        let code = match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        };
        // A version that is no longer known is routine.
        if gone(error) {
            return Ok(());
        }
        self.tell(Update::Failed(Failure { message: describe(error), code })).await
    }

    async fn tell(&self, update: Update<T>) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }
}

fn gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 410)
}

/// Between 0 and 1; without random numbers, the middle.
fn fraction() -> f64 {
    SysRng.try_next_u32().map_or(0.5, |drawn| f64::from(drawn) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
