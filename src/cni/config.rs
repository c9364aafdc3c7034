//! Configurations as libcni reads them: lists, and single plugins as lists of one (CNI specification 1.1, "Section 1").

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::error::Error;

/// Endings that count, as go-cni has them.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];
/// Larger ones are no configurations.
const BYTES_MAX: u64 = 1 << 20;
const PLUGINS_MAX: usize = 64;

/// A version of the specification; the patch level never matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u16,
    minor: u16,
}

impl Version {
    /// `major.minor`
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split('.').map(str::parse);
        Some(Self { major: numbers.next()?.ok()?, minor: numbers.next()?.ok()? })
    }
}

/// A network configuration list.
#[derive(Clone, Debug, PartialEq)]
pub struct List {
    /// Name of the network.
    pub name: String,
    /// Version all its plugins speak, parsed.
    pub version: Version,
    version_text: String,
    disable_gc: bool,
    /// The plugins' configurations, in order.
    pub plugins: Vec<Map<String, Value>>,
}

/// The type of a plugin: its program's name.
pub(super) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// All lists of a directory, in lexical order of their files. A directory that is not there has none.
///
/// # Errors
/// There are files, and none of them can be used: what is wrong with each.
pub(super) fn read(directory: &Path) -> Result<Vec<List>, String> {
    let mut files: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.to_string()),
    };
    files.retain(|path| {
        path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)) && path.is_file()
    });
    files.sort();
    let (mut lists, mut wrong): (Vec<List>, Vec<String>) = (Vec::new(), Vec::new());
    for file in &files {
        match read_file(file) {
            Ok(list) if lists.iter().any(|other| other.name == list.name) => {
                tracing::warn!(file = %file.display(), network = list.name, "an earlier file has a network of that name");
            }
            Ok(list) => lists.push(list),
            Err(reason) => {
                tracing::warn!(file = %file.display(), reason, "this CNI configuration can't be used");
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                wrong.push(format!("{name}: {reason}"));
            }
        }
    }
    if lists.is_empty() && !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    Ok(lists)
}

fn read_file(path: &Path) -> Result<List, String> {
    let mut document = read_object(path)?;
    let single =
        path.extension().is_some_and(|ending| ending != "conflist") && !document.contains_key("plugins");
    if single {
        let (name, version) = (document.get("name").cloned(), document.get("cniVersion").cloned());
        let plugins = Value::Array(vec![Value::Object(document)]);
        document = Map::from_iter([("plugins".to_owned(), plugins)]);
        document.extend(name.map(|name| ("name".to_owned(), name)));
        document.extend(version.map(|version| ("cniVersion".to_owned(), version)));
    } else if document.get("loadOnlyInlinedPlugins") != Some(&Value::Bool(true))
        && let Some(name) = document.get("name").and_then(Value::as_str)
        && !name.contains('/')
    {
        // libcni 1.3: plugins of a list may stand in a directory of its name.
        let more = read_directory(&path.with_file_name(name))?;
        if let Some(plugins) = document.entry("plugins").or_insert(Value::Array(Vec::new())).as_array_mut() {
            plugins.extend(more);
        }
    }
    parse(document)
}

fn read_directory(directory: &Path) -> Result<Vec<Value>, String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "conf"))
        .collect();
    files.sort();
    files.iter().map(|file| read_object(file).map(Value::Object)).collect()
}

fn read_object(path: &Path) -> Result<Map<String, Value>, String> {
    let size = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if size > BYTES_MAX {
        return Err(format!("{size} bytes, and {BYTES_MAX} is the most"));
    }
    let text = fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&text).map_err(|error| format!("not a JSON object: {error}"))
}

fn parse(mut document: Map<String, Value>) -> Result<List, String> {
    let name = document.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !valid_name(&name) {
        return Err(format!("name {name:?}: letters, digits, `.`, `_` and `-`, the first a letter or digit"));
    }
    let version_text = choose_version(&document)?;
    let version =
        Version::parse(&version_text).ok_or_else(|| format!("cniVersion {version_text:?} is none"))?;
    if version > Version::new(1, 1) {
        return Err(format!("cniVersion {version_text} is newer than 1.1.0, the newest known here"));
    }
    let disable_gc = document.get("disableGC") == Some(&Value::Bool(true));
    let Some(Value::Array(plugins)) = document.remove("plugins") else {
        return Err("it has no plugins".to_owned());
    };
    if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
        return Err(format!("it has {} plugins: 1 to {PLUGINS_MAX}", plugins.len()));
    }
    let plugins = plugins
        .into_iter()
        .enumerate()
        .map(|(number, plugin)| match plugin {
            // A type is a program's name, never a path.
            Value::Object(plugin) if valid_name(kind(&plugin)) => Ok(plugin),
            _ => Err(format!("plugin {} has no type that is a program's name", number + 1)),
        })
        .collect::<Result<_, _>>()?;
    Ok(List { name, version, version_text, disable_gc, plugins })
}

/// `cniVersions` lists alternatives (1.1): the newest that is known. Without a version it is 0.1.0.
fn choose_version(document: &Map<String, Value>) -> Result<String, String> {
    let own = document.get("cniVersion").and_then(Value::as_str);
    let others = document.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let known = own
        .into_iter()
        .chain(others.filter_map(Value::as_str))
        .filter(|text| Version::parse(text).is_some_and(|version| version <= Version::new(1, 1)))
        .max_by_key(|text| Version::parse(text));
    match (known, own) {
        (Some(known), _) => Ok(known.to_owned()),
        (None, Some(own)) => Ok(own.to_owned()),
        (None, None) => Ok("0.1.0".to_owned()),
    }
}

fn valid_name(name: &str) -> bool {
    name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

impl List {
    /// Whether plugins of this list are asked to collect garbage.
    pub(super) fn collects(&self) -> bool {
        self.version >= Version::new(1, 1) && !self.disable_gc
    }

    /// Whether a plugin declares a capability.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| declares(plugin, capability))
    }

    /// Whether a plugin of that type is in it.
    pub fn has_plugin(&self, wanted: &str) -> bool {
        self.plugins.iter().any(|plugin| kind(plugin) == wanted)
    }

    /// What a plugin gets on its standard input ("Section 3", "Deriving execution configuration").
    pub(super) fn plugin_config(
        &self,
        plugin: &Map<String, Value>,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Map<String, Value> {
        let mut config = plugin.clone();
        let wanted: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| declares(plugin, name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        config.remove("capabilities");
        if !wanted.is_empty() {
            config.insert("runtimeConfig".to_owned(), Value::Object(wanted));
        }
        config.insert("name".to_owned(), Value::String(self.name.clone()));
        config.insert("cniVersion".to_owned(), Value::String(self.version_text.clone()));
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        config
    }

    /// The list as its record keeps it.
    pub(super) fn to_record(&self) -> String {
        serde_json::json!({
            "name": self.name,
            "cniVersion": self.version_text,
            "disableGC": self.disable_gc,
            "plugins": self.plugins,
        })
        .to_string()
    }

    pub(super) fn parse_record(text: &str) -> Result<Self, Error> {
        let refused = |_| Error::Parameter {
            name: "configuration",
            value: text.chars().take(200).collect(),
            reason: "the record of an attachment has none that can be read",
        };
        let document =
            serde_json::from_str(text).map_err(|error: serde_json::Error| refused(error.to_string()))?;
        parse(document).map_err(refused)
    }
}

fn declares(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        directory
    }

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "x": 1}, {"type": "portmap", "capabilities": {"portMappings": true, "dns": false}}]}"#;

    #[test]
    fn files_count_in_lexical_order_and_by_their_endings() {
        let directory = directory(&[
            ("20-b.conflist", LIST),
            ("10-a.conf", r#"{"cniVersion": "0.3.1", "name": "single", "type": "ptp"}"#),
            ("05-z.txt", LIST),
            ("15-broken.json", "{"),
            ("30-again.json", LIST),
        ]);
        let lists = read(directory.path()).unwrap();
        assert_eq!(lists.iter().map(|list| list.name.as_str()).collect::<Vec<_>>(), ["single", "pods"]);
        assert_eq!((lists[0].version, kind(&lists[0].plugins[0])), (Version::new(0, 3), "ptp"));
        assert!(lists[1].has_capability("portMappings") && !lists[1].has_capability("dns"));
        assert!(read(Path::new("/nonexistent/net.d")).unwrap().is_empty());
    }

    #[test]
    fn plugins_of_a_list_may_stand_in_its_directory() {
        let list = r#"{"cniVersion": "1.1.0", "name": "pods"}"#;
        let directory = directory(&[
            ("10.conflist", list),
            ("pods/20-b.conf", r#"{"type": "second"}"#),
            ("pods/10-a.conf", r#"{"type": "first"}"#),
        ]);
        let lists = read(directory.path()).unwrap();
        assert_eq!(lists[0].plugins.iter().map(kind).collect::<Vec<_>>(), ["first", "second"]);
        assert!(lists[0].collects());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, words) in [
            ("[]", "not a JSON object"),
            (r#"{"name": "a", "plugins": []}"#, "0 plugins"),
            (r#"{"name": "../a", "plugins": [{"type": "x"}]}"#, "name"),
            (r#"{"name": "a", "plugins": [{"type": "../x"}]}"#, "plugin 1"),
            (r#"{"cniVersion": "2.0.0", "name": "a", "plugins": [{"type": "x"}]}"#, "newer than"),
            (r#"{"cniVersion": "new", "name": "a", "plugins": [{"type": "x"}]}"#, "is none"),
        ] {
            let reasons = read(directory(&[("10.conflist", text)]).path()).unwrap_err();
            assert!(reasons.contains(words) && reasons.contains("10.conflist"), "{reasons}");
        }
    }

    #[test]
    fn a_plugin_gets_what_it_declares() {
        let lists = read(directory(&[("10.conflist", LIST)]).path()).unwrap();
        let capabilities = json!({"portMappings": [{"hostPort": 1}], "dns": {}});
        let capabilities = capabilities.as_object().unwrap();
        let previous = json!({"ips": []});
        let of = |number: usize| {
            Value::Object(lists[0].plugin_config(&lists[0].plugins[number], capabilities, Some(&previous)))
        };
        let expected = json!({"type": "bridge", "x": 1, "name": "pods", "cniVersion": "1.0.0", "prevResult": {"ips": []}});
        assert_eq!(of(0), expected);
        assert_eq!(of(1)["runtimeConfig"], json!({"portMappings": [{"hostPort": 1}]}));
        assert_eq!(of(1).get("capabilities"), None);
        assert_eq!(List::parse_record(&lists[0].to_record()).unwrap(), lists[0]);
    }

    #[test]
    fn the_newest_known_of_several_versions_is_spoken() {
        let text = r#"{"cniVersion": "0.4.0", "cniVersions": ["0.3.1", "1.0.0", "7.0.0"], "name": "a",
            "plugins": [{"type": "x"}]}"#;
        assert_eq!(read(directory(&[("10.conflist", text)]).path()).unwrap()[0].version, Version::new(1, 0));
    }
}
