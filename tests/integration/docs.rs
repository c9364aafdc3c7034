//! Every command that the documentation shows is run, page by page, against a daemon with the registries that it names.
//!
//! A `sh` or `console` block must run and succeed unless a comment before it says why it can't (`tests/support/pages.rs`); what a
//! `console` block shows must be what is printed: `…` stands for any text of a line, a line of it alone for any lines.
//! TOML for Berth must be a configuration that it takes, what is for others, YAML and JSON, must be readable.
//!
//! A page's blocks see a machine of their own: changes to `/etc`, `/opt` and `/usr/local` are kept away from the real ones, the
//! home directory is new, the daemon's socket is where it is on a node, and `docker.io` and
//! `registry.example.com` are names of the test's registry.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use libtest_mimic::{Failed, Trial};
use serde_json::json;

use crate::support::image::Image;
use crate::support::pages::{Block, blocks, pages};
use crate::support::runtime::{Options, Runtime, binaries};
use crate::support::{World, patience};

pub(crate) fn trials() -> Vec<Trial> {
    let name = |page: &Path| page.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let mut trials: Vec<Trial> = pages()
        .into_iter()
        .filter(|page| blocks(page).iter().any(runs))
        .map(|page| Trial::test(format!("docs::commands_of_{}", name(&page)), move || commands_of(&page)))
        .collect();
    trials.push(Trial::test("docs::files_are_readable", files_are_readable));
    trials.push(Trial::test("docs::links_lead_somewhere", links_lead_somewhere));
    trials.push(Trial::test("docs::messages_are_those_of_the_code", messages_are_those_of_the_code));
    trials
}

fn runs(block: &Block) -> bool {
    block.typed().is_some() && block.not_run.is_none()
}

/// Seconds that one block may take.
const LIMIT: u64 = 60;

/// Runs `script` in a mount namespace of its own, which it first makes a machine that looks like a node.
const MACHINE: &str = r#"
set -eu
mount -t tmpfs tmpfs /mnt
for dir in /etc /opt /usr/local; do
    mkdir -p "$dir" "/mnt/up$dir" "/mnt/work$dir"
    mount -t overlay overlay -o "lowerdir=$dir,upperdir=/mnt/up$dir,workdir=/mnt/work$dir" "$dir"
done
mkdir -p /run/berth /mnt/run
ln -s "$SOCKET" /mnt/run/berth.sock
mount --bind /mnt/run /run/berth
mkdir -p /etc/berth/conf.d /etc/containerd
[ -e /etc/containerd/config.toml ] || echo 'version = 2' > /etc/containerd/config.toml
mkdir -p /etc/systemd/system
printf '[Service]\nExecStart=/usr/bin/kubelet\n' > /etc/systemd/system/kubelet.service
cd "$HOME"
for script in "$SCRIPTS"/*.sh; do
    if ! timeout --kill-after=5 "$LIMIT" bash -euo pipefail "$script" < /dev/null > "$script.out" 2>&1; then
        : > "$script.failed"
        exit 0
    fi
done
"#;

fn commands_of(page: &Path) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut world = World::new(Runtime::Berth, &Options::default());
        publish(&world);
        // Pages scrape the daemon where it is asked on a node; this network namespace is ours alone.
        let drop_ins = world.run.join("conf.d");
        fs::create_dir_all(&drop_ins).unwrap();
        fs::write(drop_ins.join("docs.toml"), "[metrics]\naddress = \"127.0.0.1:9477\"\n").unwrap();
        world.daemon.spawn();
        world.ready().await;
        let blocks: Vec<Block> = blocks(page).into_iter().filter(runs).collect();
        let done = tokio::task::block_in_place(|| run(&world, &blocks));
        done?;
        // What a page leaves on purpose, for readers to go on with.
        for id in world.berth_ok(&["pods", "-q"]).lines() {
            world.berth_ok(&["rm", "-f", id]);
        }
        world.berth_ok(&["network", "prune"]);
        world.finish().await;
        Ok(())
    })
}

/// Has the registry give images that pages name, under those names.
fn publish(world: &World) {
    let host = world.registry.host();
    let web = json!({"Cmd": ["httpd", "-f", "-p", "80", "-h", "/www"], "ExposedPorts": {"80/tcp": {}}});
    let sleeper = json!({"Entrypoint": ["sleep", "1000000000"], "Volumes": {"/var/lib/postgresql/data": {}}});
    for (name, tag, config) in [
        ("library/nginx", "alpine", &web),
        ("library/busybox", "latest", &json!({"Cmd": ["sh"]})),
        ("library/postgres", "latest", &sleeper),
        ("team/app", "1.0", &web),
    ] {
        world.registry.push(name, tag, &Image::busybox(config.clone()));
    }
    for (registry, hosts) in [
        ("docker.io", format!("[host.\"http://{host}\"]\n")),
        ("registry.example.com", format!("server = \"http://{host}\"\n")),
    ] {
        let directory = world.daemon.certs.join(registry);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("hosts.toml"), hosts).unwrap();
    }
}

fn run(world: &World, blocks: &[Block]) -> Result<(), String> {
    let scripts = world.run.join("scripts");
    let home = world.run.join("home");
    fs::create_dir_all(&scripts).unwrap();
    fs::create_dir_all(&home).unwrap();
    let path = |number: usize| scripts.join(format!("{number:03}.sh"));
    for (number, block) in blocks.iter().enumerate() {
        fs::write(path(number), block.typed().unwrap_or_default()).unwrap();
    }
    let search = std::env::var("PATH").unwrap_or_default();
    let machine = world.netns.run(|| {
        Command::new("unshare")
            .args(["--mount", "--propagation", "private", "bash", "-c", MACHINE])
            .env("PATH", format!("{}:/usr/sbin:/sbin:{search}", binaries().display()))
            .env("SOCKET", &world.daemon.socket)
            .env("SCRIPTS", &scripts)
            .env("BERTH_LOG_DIR", world.run.join("client-logs"))
            // A place that the daemon sees as well: pages mount from it.
            .env("HOME", &home)
            .env("LIMIT", patience(LIMIT).as_secs().to_string())
            .env_remove("BERTH_ADDRESS")
            .stdin(Stdio::null())
            .output()
    });
    let machine = machine.map_err(|error| format!("unshare: {error}"))?;
    if !machine.status.success() {
        return Err(format!("making the machine: {}", String::from_utf8_lossy(&machine.stderr)));
    }
    for (number, block) in blocks.iter().enumerate() {
        let script = path(number).display().to_string();
        let printed = fs::read(format!("{script}.out")).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed);
        if Path::new(&format!("{script}.failed")).exists() {
            return Err(format!("{} fails:\n{printed}\nthe daemon:\n{}", block.place, world.daemon.log()));
        }
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        if block.language == "console" && !matches(&block.printed(), &lines) {
            return Err(format!("{} prints something else:\n{printed}", block.place));
        }
    }
    Ok(())
}

/// Whether lines are those that were expected.
fn matches(expected: &[&str], lines: &[&str]) -> bool {
    match (expected, lines) {
        ([], lines) => lines.is_empty(),
        (["…", rest @ ..], lines) => (0..=lines.len()).any(|skipped| matches(rest, &lines[skipped..])),
        ([_, ..], []) => false,
        ([line, rest @ ..], [first, others @ ..]) => is_like(line.trim_end(), first) && matches(rest, others),
    }
}

/// The same for one line. Blanks count as one: columns are as wide as what is in them.
fn is_like(expected: &str, line: &str) -> bool {
    let squeeze = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (expected, line) = (squeeze(expected), squeeze(line));
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn files_are_readable() -> Result<(), Failed> {
    assert!(is_like("a … c … e", "a  b c d e") && !is_like("a … c", "a b d") && !is_like("a", "ab"));
    assert!(matches(&["a", "…", "z"], &["a", "b", "c", "z"]) && !matches(&["a"], &["a", "b"]));
    let scratch = std::path::PathBuf::from("/run/docs-files");
    fs::create_dir_all(&scratch)?;
    let mut wrong = Vec::new();
    for block in pages().iter().flat_map(|page| blocks(page)) {
        let read = match block.language.as_str() {
            "toml" => toml(&block, &scratch),
            "yaml" => {
                serde_saphyr::from_str::<serde_json::Value>(&block.text).map(drop).map_err(|e| e.to_string())
            }
            "json" => {
                serde_json::from_str::<serde_json::Value>(&block.text).map(drop).map_err(|e| e.to_string())
            }
            "sh" | "console" | "ini" | "text" => Ok(()),
            other => Err(format!("{other:?} is no language of a block here")),
        };
        wrong.extend(read.err().map(|problem| format!("{}: {problem}", block.place)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// A file of ours is checked by the daemon; one of somebody else's, which its first line names, must be TOML.
fn toml(block: &Block, scratch: &Path) -> Result<(), String> {
    toml::from_str::<toml::Table>(&block.text).map_err(|error| error.to_string())?;
    let first = block.text.lines().next().unwrap_or_default();
    if first.starts_with("# ") && first.contains(".toml") && !first.contains("/etc/berth/c")
        || first.contains("certs.d")
    {
        return Ok(());
    }
    let file = scratch.join("config.toml");
    fs::write(&file, &block.text).map_err(|error| error.to_string())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).map_err(|error| error.to_string())?;
    let checked =
        Command::new(binaries().join("berthd")).arg("--config").arg(&file).args(["config", "check"]).output();
    let checked = checked.map_err(|error| error.to_string())?;
    match checked.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&checked.stderr).into_owned()),
    }
}

/// What the page on troubleshooting quotes in the first column is what the programs print.
fn messages_are_those_of_the_code() -> Result<(), Failed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for directory in ["src", "cni/src", "shim/src"] {
        read_all(&root.join(directory), &mut code)?;
    }
    // A string that goes on in the next line.
    let code: Vec<&str> = code.split("\\\n").map(str::trim_start).collect();
    let code = code.concat();
    let page = fs::read_to_string(root.join("docs/troubleshooting.md"))?;
    let quoted =
        page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |").map(|(text, _)| text));
    // What the kernel says.
    let quoted: Vec<&str> = quoted.filter(|text| !text.starts_with("No space left")).collect();
    assert!(quoted.len() > 30, "{quoted:?}");
    let parts = quoted.iter().flat_map(|text| text.split('…')).map(str::trim);
    let unknown: Vec<&str> = parts.filter(|part| part.len() > 3 && !code.contains(part)).collect();
    assert!(unknown.is_empty(), "the code says none of {unknown:#?}");
    Ok(())
}

fn read_all(directory: &Path, text: &mut String) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, text)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

/// Links from page to page lead to files and headings that are there.
fn links_lead_somewhere() -> Result<(), Failed> {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page)?;
        let directory = page.parent().unwrap_or(Path::new("/"));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) =
                link.split_once('#').map_or((link, None), |(file, mark)| (file, Some(mark)));
            if file.contains("://") {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { directory.join(file) };
            if !target.exists() {
                wrong.push(format!("{}: {link}: no such file", page.display()));
            } else if let Some(heading) = heading
                && !headings(&fs::read_to_string(&target)?).any(|one| one == heading)
            {
                wrong.push(format!("{}: {link}: no such heading", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Headings as links name them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().replace(' ', "-")
    })
}
