//! The objects that one watch has brought, folded from its updates.

use std::collections::{BTreeMap, BTreeSet};

use secureoverlay_k8s::{object::Object, watch::Update};

use crate::io::snapshot::SnapshotError;

/// What one watch has brought.
#[derive(Debug)]
pub(super) struct Watched<T> {
    /// By name; `None` until the first list.
    known: Option<BTreeMap<String, Object<T>>>,
    /// Objects that can't be read, as far as the log knows.
    unreadable: BTreeSet<String>,
    /// Why the watch fails.
    error: Option<String>,
}

impl<T> Default for Watched<T> {
    fn default() -> Self {
        Self { known: None, unreadable: BTreeSet::new(), error: None }
    }
}

impl<T: PartialEq> Watched<T> {
    /// Whether that changed anything that matters: versions do not.
    pub(super) fn fold(&mut self, what: &'static str, update: Update<T>) -> bool {
        if let Update::Failed(failure) = update {
            if self.error.is_none() {
                let error = failure.message.as_str();
                tracing::warn!(watch = what, error, "cannot watch; going on with what is known");
            }
            self.error = Some(failure.message);
            return false;
        }
        if self.error.take().is_some() {
            tracing::info!(watch = what, "the API server answers again");
        }
        match update {
            Update::List { objects, .. } => {
                objects.iter().for_each(|object| self.note(what, object));
                let list: BTreeMap<_, _> =
                    objects.into_iter().map(|object| (object.meta.name.clone(), object)).collect();
                let same = self.known.as_ref().is_some_and(|known| {
                    known.len() == list.len()
                        && known.iter().zip(&list).all(|((_, one), (_, other))| is_same(one, other))
                });
                self.known = Some(list);
                !same
            }
            Update::Applied(object) => {
                self.note(what, &object);
                let Some(known) = &mut self.known else { return false };
                let same = known.get(&object.meta.name).is_some_and(|before| is_same(before, &object));
                known.insert(object.meta.name.clone(), object);
                !same
            }
            Update::Deleted(object) => {
                self.unreadable.remove(&object.meta.name);
                self.known.as_mut().is_some_and(|known| known.remove(&object.meta.name).is_some())
            }
            Update::Heard | Update::Failed(_) => false,
        }
    }

    /// Says once that an object can't be read.
    fn note(&mut self, what: &'static str, object: &Object<T>) {
        match &object.content {
            Ok(_) => drop(self.unreadable.remove(&object.meta.name)),
            Err(error) => {
                if self.unreadable.insert(object.meta.name.clone()) {
                    tracing::warn!(
                        watch = what,
                        name = object.meta.name,
                        error,
                        "object cannot be read; what was read last counts. Was it edited, or is its agent of another version?"
                    );
                }
            }
        }
    }

    pub(super) fn get(&self, what: &'static str) -> Result<impl Iterator<Item = &Object<T>>, SnapshotError> {
        let known = self.known.as_ref();
        let known = known.ok_or_else(|| SnapshotError::Unknown { what, error: self.error.clone() })?;
        Ok(known.values())
    }
}

fn is_same<T: PartialEq>(one: &Object<T>, other: &Object<T>) -> bool {
    one.meta.name == other.meta.name && one.meta.uid == other.meta.uid && one.content == other.content
}
