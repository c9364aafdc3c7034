#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

struct Files(tempfile::TempDir);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("conf.d")).unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self(directory)
    }

    fn source(&self) -> Source {
        Source { file: Some(self.0.path().join("config.toml")), ..Source::default() }
    }

    fn load(&self) -> Result<Loaded, Error> {
        self.source().load()
    }
}

fn load(text: &str) -> Result<Loaded, Error> {
    Files::new(&[("config.toml", text)]).load()
}

fn refusal(text: &str) -> String {
    load(text).expect_err("refused").to_string()
}

/// Asserts that the text is refused at a line with a message that holds some words.
#[track_caller]
fn refused(text: &str, line: usize, words: &str) {
    let message = refusal(text);
    assert!(message.contains(&format!("config.toml:{line}: ")), "{message}");
    assert!(message.contains(words), "{message}");
}

#[test]
fn empty_file_is_all_defaults() {
    let config = load("").unwrap().config;
    assert_eq!(config.grpc.address, Path::new("/run/berth/berth.sock"));
    assert_eq!(config.grpc.max_message_size, 16 << 20);
    assert_eq!(config.images.progress_timeout, Duration::from_secs(60));
    assert_eq!(config.network.bridge.subnets.len(), 2);
    assert_eq!(config.network.bridge.mtu, None);
    assert_eq!(config.runtimes.get("berth"), Some(&Runtime::Berth));
    assert_eq!(config.streaming.idle_timeout, Duration::from_secs(4 * 3600));
}

#[test]
fn default_file_says_what_the_defaults_are() {
    let from_file = load(&default_file()).unwrap();
    let from_nothing = load("").unwrap();
    assert_eq!(format!("{:?}", from_file.config), format!("{:?}", from_nothing.config));
    for key in schema::KEYS {
        let name = key.path.rsplit('.').next().unwrap();
        assert!(default_file().contains(&format!("{name} = ")), "{}", key.path);
    }
}

#[test]
fn example_of_the_design_is_accepted() {
    let config = load(
        r#"
        version = 1
        root  = "/var/lib/berth"
        [metrics]
        address = ""
        [network.etcd]
        endpoints = ["https://10.0.0.1:2379"]
        [runtimes.berth]
        type = "berth"
        [runtimes.runc]
        type = "oci"
        path = "/usr/bin/runc"
        [runtimes.kata]
        type = "shim"
        path = "/usr/bin/containerd-shim-kata-v2"
        "#,
    )
    .unwrap()
    .config;
    assert_eq!(config.metrics.address, None);
    let root = PathBuf::from("/run/berth/runtimes/runc");
    assert_eq!(config.runtimes["runc"], Runtime::Oci { path: "/usr/bin/runc".into(), root });
    let path = PathBuf::from("/usr/bin/containerd-shim-kata-v2");
    assert_eq!(config.runtimes["kata"], Runtime::Shim { path, config: None, sandbox: true });
}

#[test]
fn later_files_win_key_by_key() {
    let files = Files::new(&[
        ("config.toml", "[images]\nmax_parallel_downloads = 5\npinned = [\"a\"]\n"),
        ("conf.d/20-b.toml", "[images]\npinned = [\"c\"]\n"),
        ("conf.d/10-a.toml", "[images]\npinned = [\"b\"]\nprogress_timeout = \"2m\"\n"),
        ("conf.d/.hidden.toml", "nonsense"),
        ("conf.d/note.txt", "nonsense"),
    ]);
    let loaded = files.load().unwrap();
    assert_eq!(loaded.config.images.max_parallel_downloads, 5);
    assert_eq!(loaded.config.images.pinned, ["c"]);
    assert_eq!(loaded.config.images.progress_timeout, Duration::from_secs(120));
    assert_eq!(loaded.files.len(), 3);
    let dump = dump(&loaded.settings);
    assert!(dump.contains("conf.d/20-b.toml:2"), "{dump}");
    assert!(dump.contains("max_parallel_downloads = 5  # "), "{dump}");
    assert!(dump.contains("root = \"/var/lib/berth\"  # default"), "{dump}");
}

#[test]
fn dump_is_a_configuration_again() {
    let loaded = load("[runtimes.runc]\npath = \"/usr/bin/runc\"\n").unwrap();
    let again = load(&dump(&loaded.settings)).unwrap();
    assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
}

#[test]
fn command_line_wins() {
    let files = Files::new(&[("config.toml", "state = \"/run/a\"\n")]);
    let source = Source { state: Some("/run/b".into()), log_level: Some("debug".into()), ..files.source() };
    let loaded = source.load().unwrap();
    assert_eq!(loaded.config.state, Path::new("/run/b"));
    assert_eq!(loaded.config.grpc.address, Path::new("/run/b/berth.sock"));
    assert!(dump(&loaded.settings).contains("state = \"/run/b\"  # --state"));
    let relative = Source { root: Some("here".into()), ..files.source() };
    assert!(relative.load().unwrap_err().to_string().starts_with("--root: `root`: \"here\""));
}

#[test]
fn missing_file_is_named() {
    let source = Source { file: Some("/nonexistent/berth.toml".into()), ..Source::default() };
    assert!(source.load().unwrap_err().to_string().starts_with("reading /nonexistent/berth.toml: "));
}

#[test]
fn all_problems_are_named_at_once() {
    let message = refusal("rot = \"/x\"\n[grpc]\ngid = -1\n[images]\nprogress_timeout = \"soon\"\n");
    assert_eq!(message.lines().count(), 3, "{message}");
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    refused("rot = \"/x\"", 1, "unknown key `rot` (did you mean `root`?)");
    refused(
        "[images]\n\nmax_paralel_downloads = 3",
        3,
        "in [images] (did you mean `max_parallel_downloads`?)",
    );
    refused("[grcp]\ngid = 1", 1, "(did you mean `grpc`?)");
    refused("[network.bridge]\nsubnet = []", 2, "(did you mean `subnets`?)");
    refused("[cgroup]\nzzz = 1", 2, "(valid: driver, root)");
    refused("[runtimes.runc]\npaht = \"/x\"", 2, "(did you mean `path`?)");
    refused("[runtimes.\"a.b\"]\npath = \"/x\"", 1, "unknown key `a.b`");
}

#[test]
fn wrong_types_are_refused() {
    refused("root = 3", 1, "`root` is an absolute path, not a number");
    refused("[grpc]\ngid = \"wheel\"", 2, "`grpc.gid` is a whole number, not a string");
    refused("[images]\npinned = \"x\"", 2, "list of strings, not a string");
    refused("[images]\npinned = [1]", 2, "list of strings");
    refused("[images]\ndiscard_unpacked_layers = 1", 2, "true or false");
    refused("grpc = 3", 1, "`grpc` is a table");
    refused("[root]\nx = 1", 1, "`root` is an absolute path, not a table");
    refused("[grpc]\ngid = 1.5", 2, "fractions");
    refused("[grpc]\ngid = 99999999999999999999", 2, "out of range");
    refused("[grpc]\ngid = 1\ngid = 2", 3, "duplicate key");
    refused("[grpc\n", 1, "");
}

#[test]
fn impossible_values_are_refused() {
    refused("version = 2", 1, "`version`: 2 is not within 1 to 1");
    refused("root = \"var\"", 1, "not an absolute path");
    refused("root = \"/a/../b\"", 1, "without \"..\"");
    refused("root = \"/a\"\nstate = \"/a\"", 2, "same directory");
    refused("default_runtime = \"bert\"", 1, "(did you mean `berth`?)");
    refused("[grpc]\ngid = -1", 2, "-1 is not within");
    refused("[grpc]\nmax_message_size = \"16MB\"", 2, "KiB, MiB");
    refused("[grpc]\nmax_message_size = 5", 2, "not within");
    refused("[grpc]\ndeadline = \"0\"", 2, "not within");
    refused("[grpc]\nmax_concurrent_calls = 0", 2, "not within");
    refused(&format!("[grpc]\naddress = \"/{}\"", "a".repeat(107)), 2, "107 bytes");
    refused("[grpc]\naddress = \"/var/run/crio/crio.sock\"", 2, "CRI-O");
    refused("[log]\nformat = \"jsn\"", 2, "(did you mean `json`?)");
    refused("[log]\nlevel = \"dbug\"", 2, "(did you mean `debug`?)");
    refused("[log]\nlevel = \"info,berth=loud\"", 2, "log.level");
    refused("[streaming]\naddress = \"localhost\"", 2, "not an IP address with a port");
    refused("[metrics]\naddress = \"9477\"", 2, "not an IP address with a port");
    refused("[cgroup]\ndriver = \"systmd\"", 2, "(did you mean `systemd`?)");
    refused("[cgroup]\nroot = \"berth\"", 2, "absolute path");
    refused("[images]\nprogress_timeout = \"1 minute\"", 2, "not a duration");
    refused("[images]\nprogress_timeout = \"60\"", 2, "not a duration");
    refused("[images]\nmax_parallel_downloads = 0", 2, "not within 1 to 64");
    refused("[images]\nconfig_path = [\n\"/a\",\n\"b\"]", 4, "absolute");
    refused("[images]\npinned = [\"a b\"]", 2, "no image reference");
    refused("[network]\nmode = \"cnii\"", 2, "(did you mean `cni`?)");
    refused("[network]\nstore = \"etcd\"", 2, "needs `network.etcd.endpoints`");
    refused("[network]\nstore = \"etcd\"\n[network.etcd]\nendpoints = [\"10.0.0.1\"]", 4, "URL");
    refused("[network]\ntable = \"a b\"", 2, "no table name");
    let etcd = |more: &str| {
        format!("[network]\nstore = \"etcd\"\n[network.etcd]\nendpoints = [\"http://10.0.0.1:2379\"]\n{more}")
    };
    refused(&etcd("prefix = \"berth\""), 5, "begins with `/`");
    refused(&etcd("lease = \"1s\""), 5, "2s");
    refused(&etcd("cert_file = \"/a\""), 5, "needs its key");
    refused(&etcd("ca_file = \"/a\""), 4, "https");
    refused(&etcd("[network.overlay]\naddress = \"eth0\""), 6, "no IP address");
    refused(&etcd("[network.overlay]\nport = 0"), 6, "1");
}

#[test]
fn impossible_bridges_are_refused() {
    let bridge = |line: &str| format!("[network.bridge]\n{line}");
    refused(&bridge("name = \"a-name-of-16-byt\""), 2, "1 to 15 bytes");
    refused(&bridge("name = \"a/b\""), 2, "no interface name");
    refused(&bridge("subnets = [\"10.0.0.0/33\"]"), 2, "is no subnet");
    refused(&bridge("subnets = [\"10.0.0.0\"]"), 2, "is no subnet");
    refused(&bridge("subnets = [\"10.85.0.1/16\"]"), 2, "did you mean `10.85.0.0/16`?");
    refused(
        &bridge("subnets = [\n\"10.85.0.0/16\",\n\"10.85.9.0/24\"]"),
        4,
        "10.85.9.0/24 and 10.85.0.0/16 overlap",
    );
    refused(&bridge("subnets = [\"fd00::/64\", \"fd00::/48\"]"), 2, "overlap");
    refused(&bridge("subnets = [\"10.0.0.0/31\"]"), 2, "too small");
    refused(&bridge("subnets = [\"224.0.0.0/16\"]"), 2, "multicast");
    refused(&bridge("subnets = []"), 2, "no subnet");
    refused(&bridge("mtu = 1000"), 2, "IPv6");
    refused(&bridge("mtu = 60\nsubnets = [\"10.0.0.0/16\"]"), 2, "IPv4");
    refused(&bridge("mtu = 70000"), 2, "not within");
}

#[test]
fn impossible_runtimes_are_refused() {
    refused("[runtimes.runc]", 1, "`path` is missing");
    refused("[runtimes.runc]\npath = \"runc\"", 2, "absolute");
    refused("[runtimes.runc]\ntype = \"ocy\"\npath = \"/x\"", 2, "(did you mean `oci`?)");
    refused("[runtimes.Runc]\npath = \"/x\"", 1, "lower case");
    refused("[runtimes.r]\npath = \"/x\"\nsandbox = \"none\"", 3, "type \"shim\"");
    refused("[runtimes.r]\npath = \"/x\"\nconfig = \"/y\"", 3, "type \"shim\"");
    refused("[runtimes.berth]\ntype = \"oci\"\npath = \"/x\"", 2, "built-in");
    refused("[runtimes.b]\ntype = \"berth\"\npath = \"/x\"", 3, "linked in");
    refused("[runtimes.k]\ntype = \"shim\"\npath = \"/x\"\nroot = \"/y\"", 4, "only a runtime of type");
}

#[test]
fn handlers_say_what_their_containers_get() {
    let config =
        load("[runtimes.berth]\ncgroup_writable = true\n[runtimes.k]\npath = \"/k\"").unwrap().config;
    assert!(config.runtime_options["berth"].cgroup_writable);
    assert_eq!(config.runtime_options["k"], RuntimeOptions::default());
    assert_eq!(load("").unwrap().config.runtime_options["berth"], RuntimeOptions::default());
    refused("[runtimes.berth]\ncgroup_writable = \"yes\"", 2, "true or false");
    let profile = |text: &str| {
        load(&format!("unset_seccomp_profile = \"{text}\"")).unwrap().config.unset_seccomp_profile
    };
    assert_eq!(profile("runtime/default"), SeccompProfile::RuntimeDefault);
    assert_eq!(profile("localhost//etc/p.json"), SeccompProfile::Localhost("/etc/p.json".into()));
    assert_eq!(load("").unwrap().config.unset_seccomp_profile, SeccompProfile::Unconfined);
    refused("unset_seccomp_profile = \"default\"", 1, "runtime/default");
}

#[test]
fn durations_and_sizes_have_units() {
    assert_eq!(value::duration("1h30m").unwrap(), Duration::from_secs(5400));
    assert_eq!(value::duration("500ms").unwrap(), Duration::from_millis(500));
    for wrong in ["", "m", "1", "1d", "-1s", "1.5s", "99999999999999999999h"] {
        assert!(value::duration(wrong).is_err(), "{wrong}");
    }
    assert_eq!(value::size("2 GiB").unwrap(), 2 << 30);
    for wrong in ["", "MiB", "1MB", "-1", "99999999999TiB"] {
        assert!(value::size(wrong).is_err(), "{wrong}");
    }
}

/// The reference in `docs/` is what [`reference`] writes. `BERTH_BLESS=1` writes it anew.
#[test]
fn reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mark = "<!-- from here on generated from src/config/schema.rs -->\n\n";
    let (intro, generated) = text.split_once(mark).expect("the mark");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&path, format!("{intro}{mark}{}", reference())).unwrap();
    } else {
        assert_eq!(generated, reference(), "run this test once with BERTH_BLESS=1");
    }
}

#[test]
fn shims_that_run_only_processes_get_no_container_for_the_sandbox() {
    let sandbox = |text: &str| match load(text).unwrap().config.runtimes["s"].clone() {
        Runtime::Shim { sandbox, .. } => sandbox,
        other => panic!("{other:?}"),
    };
    let with = |program: &str, more: &str| {
        sandbox(&format!("[runtimes.s]\ntype = \"shim\"\npath = \"/usr/bin/{program}\"\n{more}"))
    };
    assert!(!with("containerd-shim-runc-v2", ""));
    assert!(with("containerd-shim-runc-v2", "sandbox = \"container\""));
    assert!(with("containerd-shim-runsc-v1", ""));
    assert!(!with("containerd-shim-runsc-v1", "sandbox = \"none\""));
}
