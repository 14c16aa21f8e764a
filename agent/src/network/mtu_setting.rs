//! What sets the MTU of the tunnels in this cluster, so that the advice names the command that works there.
//!
//! Felix takes `ipipMTU` from the first of these that says anything: its environment, its FelixConfiguration. An
//! installation by `calico.yaml` sets the environment (`FELIX_IPINIPMTU`, from the ConfigMap `calico-config`), so a patch
//! of the FelixConfiguration changes nothing there; Calico's operator sets it from its Installation.

use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::EnvVar};

/// Calico's DaemonSet where `calico.yaml` installs it; the operator has a namespace of its own.
pub const DAEMON_SET: &str = "calico-node";
/// Of Felix: beats its FelixConfiguration.
const VARIABLE: &str = "FELIX_IPINIPMTU";
/// API group of Calico's operator.
const OPERATOR: &str = "operator.tigera.io";
/// API groups of Calico, by CRDs and served by itself.
const CALICO: [&str; 2] = ["crd.projectcalico.org", "projectcalico.org"];
/// Where running pods have theirs from.
const RESTART: &str = "and restart the pods: those that run keep their MTU";

/// What has to be changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MtuSetting {
    /// That was not looked for.
    #[default]
    NotLooked,
    /// Calico's FelixConfiguration `default`.
    FelixConfiguration,
    /// A key of a ConfigMap, from which the environment of Calico's DaemonSet is made.
    ConfigMap {
        /// Name of the ConfigMap.
        name: String,
        /// Its key.
        key: String,
    },
    /// The environment of Calico's DaemonSet itself.
    Environment,
    /// The `Installation` of Calico's operator.
    Operator,
    /// The tunnels are not Calico's.
    Other,
    /// That could not be found out.
    Unknown,
}

impl MtuSetting {
    /// Judges what the API server shows: Calico's DaemonSet in kube-system, where it is readable, `None` inside where
    /// there is none, and the API groups that are served.
    #[must_use]
    pub fn new<'g>(
        daemon_set: Option<Option<&DaemonSet>>,
        groups: Option<impl Iterator<Item = &'g str> + Clone>,
    ) -> Self {
        let Some(daemon_set) = daemon_set else { return Self::Unknown };
        if let Some(daemon_set) = daemon_set {
            return by_environment(daemon_set);
        }
        let Some(groups) = groups else { return Self::Unknown };
        let served = |wanted: &[&str]| groups.clone().any(|group| wanted.contains(&group));
        match (served(&[OPERATOR]), served(&CALICO)) {
            (true, _) => Self::Operator,
            // Its DaemonSet has another name or place.
            (false, true) => Self::Unknown,
            (false, false) => Self::Other,
        }
    }

    /// What to do so that the tunnels have an MTU of `limit`.
    #[must_use]
    pub fn advice(&self, limit: u32) -> String {
        let felix = format!(
            "kubectl patch felixconfiguration default --type merge --patch '{{\"spec\":{{\"ipipMTU\":{limit}}}}}'"
        );
        let operator = format!(
            "kubectl patch installations.operator.tigera.io default --type merge --patch \
             '{{\"spec\":{{\"calicoNetwork\":{{\"mtu\":{limit}}}}}}}'"
        );
        let config_map = |name: &str, key: &str| {
            format!(
                "kubectl -n kube-system patch configmap {name} --type merge --patch '{{\"data\":{{\"{key}\":\"{limit}\"}}}}' \
                 && kubectl -n kube-system rollout restart daemonset {DAEMON_SET}"
            )
        };
        match self {
            Self::NotLooked => {
                format!("Set an MTU of at most {limit} where your network plugin takes it from, {RESTART}")
            }
            Self::FelixConfiguration => format!("Run: {felix} {RESTART}"),
            Self::ConfigMap { name, key } => format!("Run: {} {RESTART}", config_map(name, key)),
            Self::Environment => format!(
                "Run: kubectl -n kube-system set env daemonset/{DAEMON_SET} {VARIABLE}={limit} {RESTART}"
            ),
            Self::Operator => format!("Run: {operator} {RESTART}"),
            Self::Other => format!(
                "They are not Calico's: set an MTU of at most {limit} where the network plugin that made them takes it \
                 from, {RESTART}"
            ),
            Self::Unknown => format!(
                "What sets it here could not be found out. Where `kubectl -n kube-system get daemonset {DAEMON_SET} -o \
                 yaml` has {VARIABLE} (installed by calico.yaml), run: {}; where `kubectl get \
                 installations.operator.tigera.io` shows one, run: {operator}; with any other Calico: {felix}. Then \
                 restart the pods: those that run keep their MTU",
                config_map("calico-config", "veth_mtu")
            ),
        }
    }
}

fn by_environment(daemon_set: &DaemonSet) -> MtuSetting {
    let pod = daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let variables = pod.iter().flat_map(|pod| &pod.containers).filter_map(|container| container.env.as_ref());
    let Some(variable) = variables.flatten().find(|variable| variable.name == VARIABLE) else {
        return MtuSetting::FelixConfiguration;
    };
    config_map_key(variable).unwrap_or(MtuSetting::Environment)
}

/// `None` where a shell would take the names for something else: no API server would have accepted them.
fn config_map_key(variable: &EnvVar) -> Option<MtuSetting> {
    let from = variable.value_from.as_ref()?.config_map_key_ref.as_ref()?;
    let plain =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    let (name, key) = (from.name.clone(), from.key.clone());
    (plain(&name) && plain(&key)).then_some(MtuSetting::ConfigMap { name, key })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn calico_node(env: &Value) -> DaemonSet {
        let containers = json!([{"name": "calico-node", "env": env}]);
        let pod = json!({"metadata": {}, "spec": {"containers": containers}});
        serde_json::from_value(json!({"spec": {"selector": {}, "template": pod}})).unwrap()
    }

    fn from(name: &str, key: &str) -> Value {
        json!({"name": VARIABLE, "valueFrom": {"configMapKeyRef": {"name": name, "key": key}}})
    }

    #[test]
    fn each_installation_has_its_setting() {
        use MtuSetting::{ConfigMap, Environment, FelixConfiguration, Operator, Other, Unknown};
        let other = json!({"name": "FELIX_VXLANMTU", "value": "0"});
        let config_map = ConfigMap { name: "calico-config".into(), key: "veth_mtu".into() };
        let with = |env: Value| Some(Some(calico_node(&env)));
        let (operator, crds, served) =
            (&["apps", "operator.tigera.io"][..], &["crd.projectcalico.org"][..], &["projectcalico.org"][..]);
        for (daemon_set, groups, expected) in [
            // As `calico.yaml` has it, whatever else is served.
            (with(json!([other, from("calico-config", "veth_mtu")])), Some(operator), config_map.clone()),
            (with(json!([from("calico-config", "veth_mtu")])), None, config_map),
            (with(json!([{"name": VARIABLE, "value": "0"}])), Some(crds), Environment),
            (with(json!([from("$(reboot)", "veth_mtu")])), Some(crds), Environment),
            (with(json!([other])), Some(crds), FelixConfiguration),
            (with(Value::Null), None, FelixConfiguration),
            (Some(None), Some(operator), Operator),
            (Some(None), Some(crds), Unknown),
            (Some(None), Some(served), Unknown),
            (Some(None), Some(&["apps"][..]), Other),
            (Some(None), None, Unknown),
            (None, Some(operator), Unknown),
        ] {
            let groups = groups.map(|groups| groups.iter().copied());
            let found = MtuSetting::new(daemon_set.as_ref().map(Option::as_ref), groups);
            assert_eq!(found, expected, "{daemon_set:?}");
        }
    }

    #[test]
    fn the_advice_names_the_command_that_works() {
        let felix =
            r#"kubectl patch felixconfiguration default --type merge --patch '{"spec":{"ipipMTU":1452}}'"#;
        let operator = r#"kubectl patch installations.operator.tigera.io default --type merge --patch '{"spec":{"calicoNetwork":{"mtu":1452}}}'"#;
        let map = |name: &str, key: &str| {
            format!(
                "kubectl -n kube-system patch configmap {name} --type merge --patch '{{\"data\":{{\"{key}\":\"1452\"}}}}' && \
                 kubectl -n kube-system rollout restart daemonset calico-node"
            )
        };
        let custom = MtuSetting::ConfigMap { name: "c".into(), key: "k".into() };
        let usual = map("calico-config", "veth_mtu");
        let set = "kubectl -n kube-system set env daemonset/calico-node FELIX_IPINIPMTU=1452";
        for (setting, commands) in [
            (MtuSetting::NotLooked, vec![]),
            (MtuSetting::FelixConfiguration, vec![felix]),
            (custom, vec![&*map("c", "k")]),
            (MtuSetting::Environment, vec![set]),
            (MtuSetting::Operator, vec![operator]),
            (MtuSetting::Other, vec![]),
            (MtuSetting::Unknown, vec![felix, &usual, operator]),
        ] {
            let advice = setting.advice(1452);
            assert!(commands.iter().all(|command| advice.contains(command)), "{setting:?}: {advice}");
            let changes = advice.matches("--patch").count() + advice.matches("set env").count();
            assert_eq!(changes, commands.len(), "{advice}");
            assert!(advice.contains("1452") && advice.contains("those that run keep their MTU"), "{advice}");
        }
    }
}
