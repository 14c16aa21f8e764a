//! What the manager asks and tells the API server.
//!
//! | module | does |
//! |---|---|
//! | [`store`] | the Secret with the key ring: read, and replaced only as it was read |
//! | [`cluster_cache`] | what watches bring of nodes and of what operators ask for |
//! | [`snapshot`] | the same, listed at one moment |
//! | [`access`], [`installation`] | may the manager see that; is the agents' DaemonSet there? |
//! | [`outbox`] | a queue of everything that no rotation waits for: Events and the three below |
//! | [`objects`], [`taint`], [`orphans`] | status of operators' objects, start-up taints, objects without a Node |

pub mod access;
pub mod cluster_cache;
pub mod installation;
pub mod objects;
pub mod orphans;
pub mod outbox;
pub mod snapshot;
pub mod store;
pub mod taint;
