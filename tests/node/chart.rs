//! The Helm chart: rendered by the real helm, held against Kubernetes' own types, its commands run by the real program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::host::{Host, text};

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn chart() -> PathBuf {
    repository().join("charts/berth")
}

/// helm, where it can be had.
fn helm() -> Option<&'static Path> {
    static HELM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    tool(&HELM, "helm", &["version"])
}

/// A program: the one in `PATH`, else one that `tests/setup.sh` fetches once. `None`, with the reason printed, where it can't be had.
pub(crate) fn tool(
    once: &'static OnceLock<Result<PathBuf, String>>,
    name: &str,
    version: &[&str],
) -> Option<&'static Path> {
    let found = once.get_or_init(|| {
        if Command::new(name).args(version).output().is_ok_and(|output| output.status.success()) {
            return Ok(name.into());
        }
        let fetched = repository().join("target/tools").join(name);
        if !fetched.exists() {
            let mut setup = Command::new("sh");
            setup.arg("tests/setup.sh").arg(name).arg(&fetched);
            let output = setup.current_dir(repository()).output().map_err(|error| error.to_string())?;
            if !output.status.success() {
                return Err(text(&output));
            }
        }
        Ok(fetched)
    });
    match found {
        Ok(path) => Some(path),
        Err(why) => {
            println!("skipped: {name} is not here and can't be fetched: {why}");
            None
        }
    }
}

/// Renders with these `--set` values and further arguments.
fn render(helm: &Path, arguments: &[&str]) -> Result<Vec<Value>, String> {
    let mut command = Command::new(helm);
    command.arg("template").arg("test").arg(chart()).args(["--namespace", "berth-system"]);
    let output = command.args(["--kube-version", "1.34.0"]).args(arguments).output().unwrap();
    if !output.status.success() {
        return Err(text(&output));
    }
    let yaml = String::from_utf8(output.stdout).unwrap();
    let documents: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// A manifest as its type; what the type does not know is a mistake in the template.
fn typed<T: DeserializeOwned + Serialize>(manifest: &Value) -> T {
    let object: T = serde_json::from_value(manifest.clone())
        .unwrap_or_else(|error| panic!("{}: {error}", manifest["metadata"]["name"]));
    let back = serde_json::to_value(&object).unwrap();
    known(manifest, &back, &manifest["kind"].to_string());
    object
}

/// Everything that is in `given` is in `back` as well.
fn known(given: &Value, back: &Value, at: &str) {
    match (given, back) {
        (Value::Object(given), Value::Object(back)) => {
            for (key, value) in given {
                let at = format!("{at}.{key}");
                match back.get(key) {
                    Some(back) => known(value, back, &at),
                    None => panic!("Kubernetes does not know {at}"),
                }
            }
        }
        (Value::Array(given), Value::Array(back)) => {
            assert_eq!(given.len(), back.len(), "{at}");
            for (index, (given, back)) in given.iter().zip(back).enumerate() {
                known(given, back, &format!("{at}[{index}]"));
            }
        }
        (given, back) => assert_eq!(given, back, "{at}"),
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MonitorSpec {
    job_label: String,
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code)]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    relabelings: Vec<Value>,
}

fn of_kind<'a>(manifests: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    manifests.iter().filter(move |manifest| manifest["kind"] == kind)
}

const NODE: &[&str] = &["--set", "mode=node", "--api-versions", "monitoring.coreos.com/v1"];
const VARIANTS: &[&[&str]] = &[
    &[],
    NODE,
    &[
        "--set",
        "mode=node,noSwitch=true,noCheck=true,priorityClass.create=true,imagePullSecrets[0].name=pull,podLabels.a=b",
        "--set",
        "podAnnotations.a=b,serviceAccount.annotations.a=b,maxUnavailable=10%",
        "--set",
        "networkPolicy.from[0].namespaceSelector.matchLabels.a=b,runtimeClasses[0].name=a",
        "--set",
        "runtimeClasses[0].handler=a,runtimeClasses[0].overhead.podFixed.memory=8Mi",
    ],
    &[
        "--set",
        "serviceAccount.create=false,uninstall.enabled=false,networkPolicy.enabled=false,priorityClassName=x",
        "--set",
        "nodeLabel.enabled=false,metrics.dashboard.enabled=false",
    ],
];

#[test]
fn helm_finds_nothing_to_complain_of() {
    let Some(helm) = helm() else { return };
    for variant in VARIANTS {
        let sets: Vec<_> =
            variant.iter().filter(|part| !part.contains("api") && !part.contains("/v1")).collect();
        let output = Command::new(helm).args(["lint", "--strict"]).args(sets).arg(chart()).output().unwrap();
        assert!(output.status.success(), "{variant:?}: {}", text(&output));
    }
}

#[test]
fn every_manifest_is_what_kubernetes_knows() {
    let Some(helm) = helm() else { return };
    for variant in VARIANTS {
        let manifests = render(helm, variant).unwrap();
        assert!(manifests.len() >= 3);
        for manifest in &manifests {
            match (manifest["apiVersion"].as_str().unwrap(), manifest["kind"].as_str().unwrap()) {
                ("apps/v1", "DaemonSet") => drop(typed::<DaemonSet>(manifest)),
                ("batch/v1", "Job") => drop(typed::<Job>(manifest)),
                ("v1", "ConfigMap") => drop(typed::<ConfigMap>(manifest)),
                ("v1", "Service") => drop(typed::<Service>(manifest)),
                ("v1", "ServiceAccount") => drop(typed::<ServiceAccount>(manifest)),
                ("networking.k8s.io/v1", "NetworkPolicy") => drop(typed::<NetworkPolicy>(manifest)),
                ("node.k8s.io/v1", "RuntimeClass") => drop(typed::<RuntimeClass>(manifest)),
                ("rbac.authorization.k8s.io/v1", "ClusterRole") => drop(typed::<ClusterRole>(manifest)),
                ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
                    drop(typed::<ClusterRoleBinding>(manifest));
                }
                ("rbac.authorization.k8s.io/v1", "Role") => drop(typed::<Role>(manifest)),
                ("rbac.authorization.k8s.io/v1", "RoleBinding") => drop(typed::<RoleBinding>(manifest)),
                ("scheduling.k8s.io/v1", "PriorityClass") => drop(typed::<PriorityClass>(manifest)),
                ("monitoring.coreos.com/v1", "ServiceMonitor") => {
                    let spec: MonitorSpec = serde_json::from_value(manifest["spec"].clone()).unwrap();
                    let service: Service = typed(of_kind(&manifests, "Service").next().unwrap());
                    let wanted = spec.selector.match_labels.unwrap();
                    let labels = service.metadata.labels.unwrap();
                    assert!(wanted.iter().all(|(key, value)| labels.get(key) == Some(value)), "{labels:?}");
                    assert_eq!(Some(spec.endpoints[0].port.as_str()), service_port(&manifests).as_deref());
                    assert!(labels.contains_key(&spec.job_label));
                }
                ("monitoring.coreos.com/v1", "PrometheusRule") => {
                    let groups: Vec<crate::alerts::Group> =
                        serde_json::from_value(manifest["spec"]["groups"].clone()).unwrap();
                    assert_eq!(groups, crate::alerts::rules());
                }
                other => panic!("{other:?} is a kind this test does not know"),
            }
        }
    }
}

fn service_port(manifests: &[Value]) -> Option<String> {
    let service: Service = typed(of_kind(manifests, "Service").next()?);
    service.spec?.ports?.into_iter().next()?.name
}

fn daemon_set(manifests: &[Value], component: &str) -> (DaemonSet, PodSpec) {
    let sets: Vec<DaemonSet> = of_kind(manifests, "DaemonSet").map(typed).collect();
    let set = sets.into_iter().find(|set| {
        let labels = set.spec.as_ref().unwrap().selector.match_labels.as_ref().unwrap();
        labels["app.kubernetes.io/component"] == component
    });
    let set = set.unwrap_or_else(|| panic!("no DaemonSet {component}"));
    let spec = set.spec.clone().unwrap().template.spec.unwrap();
    (set, spec)
}

#[test]
fn nodes_are_worked_on_one_at_a_time_with_as_little_power_as_it_takes() {
    let Some(helm) = helm() else { return };
    let manifests = render(helm, NODE).unwrap();
    let (set, pod) = daemon_set(&manifests, "node");
    let update = set.spec.unwrap().update_strategy.unwrap().rolling_update.unwrap();
    assert_eq!(
        update.max_unavailable,
        Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(1))
    );
    assert_eq!(pod.tolerations.as_ref().unwrap()[0].operator.as_deref(), Some("Exists"));
    let (_, removing) = daemon_set(&manifests, "uninstall");
    assert_eq!(removing.tolerations, pod.tolerations, "what is installed is uninstalled on the same nodes");
    assert_eq!(removing.node_selector, pod.node_selector);
    for pod in [&pod, &removing] {
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.host_network.or(pod.host_pid).or(pod.host_ipc), None);
        let all = pod.init_containers.iter().flatten().chain(&pod.containers);
        for container in all {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.read_only_root_filesystem, Some(true), "{}", container.name);
            assert_eq!(security.privileged, None);
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(
                security.capabilities.as_ref().unwrap().drop.as_deref(),
                Some(&["ALL".to_owned()][..])
            );
            assert!(container.resources.as_ref().unwrap().limits.as_ref().unwrap().contains_key("memory"));
        }
    }
    let watch = &pod.containers[0];
    assert!(watch.volume_mounts.iter().flatten().all(|mount| mount.read_only == Some(true)));
    // The pods that stay may change nodes and nothing else, and what installs has no token.
    let role: ClusterRole = typed(of_kind(&manifests, "ClusterRole").next().unwrap());
    let rules = role.rules.unwrap();
    assert_eq!(
        (rules.len(), rules[0].verbs.as_slice(), rules[0].resources.as_deref()),
        (1, &["patch".to_owned()][..], Some(&["nodes".to_owned()][..]))
    );
    let mounts = |container: &k8s_openapi::api::core::v1::Container| {
        container.volume_mounts.iter().flatten().any(|mount| mount.name == "account")
    };
    assert!(mounts(watch) && !pod.init_containers.iter().flatten().any(mounts));
    // Only the pod that waits for the others may ask the API server otherwise, and only for one thing.
    let role: Role = typed(of_kind(&manifests, "Role").next().unwrap());
    let rules = role.rules.unwrap();
    assert_eq!(rules.len(), 1);
    assert_eq!(
        (rules[0].verbs.as_slice(), rules[0].resource_names.as_ref().unwrap().len()),
        (&["get".to_owned()][..], 1)
    );
}

#[test]
fn hooks_come_in_an_order_in_which_they_can_work() {
    let Some(helm) = helm() else { return };
    let manifests = render(helm, &[]).unwrap();
    let weight = |kind: &str| -> i64 {
        let hook = of_kind(&manifests, kind)
            .find(|one| one["metadata"]["annotations"]["helm.sh/hook"] == "post-delete")
            .unwrap_or_else(|| panic!("no hook {kind}"));
        hook["metadata"]["annotations"]["helm.sh/hook-weight"].as_str().unwrap().parse().unwrap()
    };
    assert!(weight("Role") <= weight("RoleBinding") && weight("RoleBinding") < weight("DaemonSet"));
    assert!(weight("ServiceAccount") < weight("DaemonSet") && weight("DaemonSet") < weight("Job"));
    let job: Job = typed(of_kind(&manifests, "Job").next().unwrap());
    let args = job.spec.unwrap().template.spec.unwrap().containers.remove(0).args.unwrap();
    let (set, _) = daemon_set(&manifests, "uninstall");
    let name = format!("{}/{}", set.metadata.namespace.unwrap(), set.metadata.name.unwrap());
    assert_eq!(args, ["node", "await-daemonset", &name]);
}

/// Runs a container's command with the host's root, and the configuration, of a test.
fn run(args: &[String], host: &Host, config: &Path, more: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    for arg in args {
        let arg = arg.replace("--root=/host", &format!("--root={}", host.root().display()));
        command.arg(arg.replace("/etc/berth-node/berth.toml", config.to_str().unwrap()));
    }
    let output = command.args(more).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output));
    text(&output)
}

/// The ConfigMap with the daemon's configuration.
fn configuration(manifests: &[Value]) -> ConfigMap {
    let mut maps = of_kind(manifests, "ConfigMap").map(typed::<ConfigMap>);
    maps.find(|map| map.data.as_ref().unwrap().contains_key("berth.toml")).unwrap()
}

#[test]
fn without_the_label_nothing_on_a_node_talks_to_the_api_server() {
    let Some(helm) = helm() else { return };
    let selector = |manifests: &[Value]| {
        let class: RuntimeClass = typed(of_kind(manifests, "RuntimeClass").next().unwrap());
        class.scheduling.unwrap().node_selector.unwrap()
    };
    let policy = |manifests: &[Value]| {
        let policy: NetworkPolicy = typed(of_kind(manifests, "NetworkPolicy").next().unwrap());
        policy.spec.unwrap().egress.unwrap_or_default().len()
    };
    let with = render(helm, &[]).unwrap();
    assert_eq!(selector(&with)["berth.dev/ready"], "true");
    assert_eq!(policy(&with), 1);
    let without = render(helm, &["--set", "nodeLabel.enabled=false"]).unwrap();
    assert!(!selector(&without).contains_key("berth.dev/ready"));
    assert_eq!(policy(&without), 0);
    assert_eq!(of_kind(&without, "ClusterRole").count() + of_kind(&without, "ClusterRoleBinding").count(), 0);
    let (_, pod) = daemon_set(&without, "node");
    assert!(pod.volumes.unwrap().iter().all(|volume| volume.projected.is_none()));
    assert!(!pod.containers[0].args.as_ref().unwrap().iter().any(|arg| arg.contains("--label")));
}

#[test]
fn the_dashboard_is_where_grafana_looks() {
    let Some(helm) = helm() else { return };
    let dashboards = |arguments: &[&str]| {
        let manifests = render(helm, arguments).unwrap();
        let maps = of_kind(&manifests, "ConfigMap").map(typed::<ConfigMap>);
        maps.filter(|map| map.data.as_ref().unwrap().contains_key("berth.json")).collect::<Vec<_>>()
    };
    let found = dashboards(NODE);
    assert_eq!(found[0].metadata.labels.as_ref().unwrap()["grafana_dashboard"], "1");
    let shown: Value = serde_json::from_str(&found[0].data.as_ref().unwrap()["berth.json"]).unwrap();
    assert_eq!(shown, crate::alerts::dashboard(), "what helm makes of it is the file");
    for none in [&["--set", "mode=node,metrics.dashboard.enabled=false"][..], &["--set", "mode=runtimeclass"]]
    {
        assert!(dashboards(none).is_empty(), "{none:?}");
    }
    let rules = |arguments: &[&str]| of_kind(&render(helm, arguments).unwrap(), "PrometheusRule").count();
    assert_eq!(rules(NODE), 1);
    assert_eq!(rules(&["--set", "mode=node"]), 0, "not where the cluster has no such kind");
    assert_eq!(rules(&[NODE, &["--set", "metrics.alerts.enabled=false"]].concat()), 0);
}

#[test]
fn the_program_takes_the_chart_s_commands_and_configuration() {
    let Some(helm) = helm() else { return };
    let variants: [&[&str]; 3] = [
        &["--set", "noCheck=true"],
        &["--set", "mode=node,noCheck=true"],
        &["--set", "mode=node,noCheck=true,noSwitch=true", "--set-string", "config=[log]\nlevel = \"debug\""],
    ];
    for variant in variants {
        let manifests = render(helm, variant).unwrap();
        let host = Host::new();
        let before = host.snapshot();
        std::fs::create_dir(host.outside()).unwrap();
        let config = host.outside().join("berth.toml");
        let map = configuration(&manifests);
        std::fs::write(&config, &map.data.unwrap()["berth.toml"]).unwrap();
        let (_, pod) = daemon_set(&manifests, "node");
        let args = pod.init_containers.unwrap().remove(0).args.unwrap();
        let from = host.programs("1.0.0");
        run(&args, &host, &config, &["--from", from.to_str().unwrap()]);
        if variant.iter().any(|part| part.contains("mode=node")) {
            let drop_in = host.read("etc/berth/conf.d/10-node.toml");
            assert!(drop_in.contains("/run/berth/metrics.sock"), "{drop_in}");
            assert_eq!(drop_in.contains("debug"), variant.len() > 2, "{drop_in}");
        }
        let (_, pod) = daemon_set(&manifests, "uninstall");
        let args = pod.init_containers.unwrap().remove(0).args.unwrap();
        run(&args, &host, &config, &[]);
        crate::host::assert_same(&before, &host.snapshot(), "uninstalled by the hook");
    }
}

#[test]
fn values_that_make_no_sense_are_refused_with_their_name() {
    let Some(helm) = helm() else { return };
    for (set, name) in [
        ("mode=beside", "mode"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("metrics.port=70000", "port"),
        ("runtimeClasses[0].handler=Berth!", "handler"),
        ("image.pullpolicy=Always", "pullpolicy"),
        ("tolerations=all", "tolerations"),
        ("uninstall.timeoutSeconds=0", "timeoutSeconds"),
    ] {
        let refused = render(helm, &["--set", set]).unwrap_err();
        assert!(refused.contains(name), "{set}: {refused}");
    }
    let own =
        render(helm, &["--set", "mode=node", "--set-string", "config=[metrics]\naddress = \"\""]).unwrap();
    let map = configuration(&own);
    assert_eq!(map.data.unwrap()["berth.toml"].matches("[metrics]").count(), 1, "theirs wins");
}

/// The table of the README: a line a value, by name, with its default and what the schema says of it.
fn values_table() -> String {
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_saphyr::from_str(&read("values.yaml")).unwrap();
    let mut lines = vec!["| value | default | meaning |".to_owned(), "| --- | --- | --- |".to_owned()];
    rows(&schema, &values, "", &mut lines);
    lines.join("\n") + "\n"
}

fn rows(schema: &Value, values: &Value, above: &str, lines: &mut Vec<String>) {
    let properties = schema["properties"].as_object().unwrap();
    for (name, value) in values.as_object().unwrap() {
        let at = format!("{above}{name}");
        let known = properties.get(name).unwrap_or_else(|| panic!("values.schema.json does not know {at}"));
        match known["description"].as_str() {
            Some(meaning) => {
                let default = serde_json::to_string(value).unwrap();
                lines.push(format!("| `{at}` | `{default}` | {meaning} |"));
            }
            None => rows(known, value, &format!("{at}."), lines),
        }
    }
    for name in properties.keys().filter(|name| *name != "global") {
        assert!(values.get(name).is_some(), "values.yaml has no default for {above}{name}");
    }
}

#[test]
fn the_readme_lists_the_values() {
    let file = chart().join("README.md");
    let readme = std::fs::read_to_string(&file).unwrap();
    let (begin, end) = ("<!-- values -->\n", "<!-- /values -->\n");
    let (head, rest) = readme.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    let wanted = values_table();
    if table != wanted && std::env::var_os("BERTH_UPDATE_DOCS").is_some() {
        std::fs::write(&file, format!("{head}{begin}{wanted}{end}{tail}")).unwrap();
        return;
    }
    assert_eq!(table, wanted, "BERTH_UPDATE_DOCS=1 cargo test --test node writes it");
}
