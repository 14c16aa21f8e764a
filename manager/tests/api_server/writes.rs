//! Conditional writes, where the condition is the real one.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use prometheus_client::registry::Registry;
use rand::{TryRng, rngs::SysRng};
use secureoverlay_keyring::{
    keyring::{KeyRing, Role},
    settings::Settings,
    uid::Uid,
};
use secureoverlay_manager::{
    io::{
        cluster_cache::ClusterCache,
        outbox,
        store::{Store, Written},
    },
    run::driver::Driver,
    telemetry::metrics::Metrics,
};
use secureoverlay_manager_core::{
    controller::{ControllerOptions, Now, Outcome},
    rollout_mode::RolloutMode,
};

use crate::cluster::{Cluster, MANAGER, Manifest};

#[tokio::test]
async fn of_two_writers_one_wins() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let store = Store::new(cluster.as_account(MANAGER));
    for round in 0..20 {
        let ((_, one), (_, two)) = (store.read().await.unwrap(), store.read().await.unwrap());
        let ring = |revision| KeyRing::off(revision, Uid::from_random([9; 16]), None, Settings::default());
        let (first, second) = (ring(2 * round + 1), ring(2 * round + 2));
        let (one, two) = tokio::join!(store.replace(one, &first, false), store.replace(two, &second, false));
        let written = match (one.unwrap(), two.unwrap()) {
            (Written::Done, Written::Conflict) => first,
            (Written::Conflict, Written::Done) => second,
            other => panic!("round {round}: {other:?}"),
        };
        assert_eq!(cluster.ring().await, Some(written));
    }
}

#[tokio::test]
async fn two_managers_make_one_key() {
    let cluster = Cluster::fresh().await;
    cluster.apply(Manifest::Ours);
    let manager = || {
        let options = ControllerOptions {
            settings: Some(Settings::default()),
            objects: false,
            mode: RolloutMode::Timed,
            delay: Duration::from_secs(60),
            limit: Duration::from_secs(3600),
            poll_interval: Duration::from_secs(2),
            startup_taint: false,
        };
        let metrics = Metrics::register(&mut Registry::default());
        let (cluster_view, (outbox, _)) = (ClusterCache::default(), outbox::queue());
        let random = |bytes: &mut [u8]| SysRng.try_fill_bytes(bytes);
        Driver::new(cluster.as_account(MANAGER), options, None, random, metrics, cluster_view, outbox)
    };
    let (mut one, mut two) = (manager(), manager());
    let now = Now { wall: Timestamp::now(), monotonic: Instant::now() };
    let (first, second) = tokio::join!(one.reconcile(|| now), two.reconcile(|| now));
    let outcomes = [first.unwrap(), second.unwrap()];
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Written).count(), 1, "{outcomes:?}");
    let ring = cluster.ring().await.unwrap();
    assert_eq!(ring.revision, 1);
    for manager in [&mut one, &mut two] {
        assert!(matches!(manager.reconcile(|| now).await.unwrap(), Outcome::Waiting { .. }));
    }
    assert_eq!(cluster.ring().await.unwrap(), ring);
    assert_eq!(ring.generations.iter().map(|g| g.role).collect::<Vec<_>>(), [Role::Staged]);
}
