//! Reading the directories.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Error;
use super::file::{Edits, File};
use super::name::Name;

/// Files of a directory that are read, and bytes of one.
const MOST_FILES: usize = 1024;
const LARGEST: u64 = 4 << 20;

/// A device, and who describes it.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) file: PathBuf,
    /// What all devices of the file need.
    pub(super) general: Edits,
    pub(super) edits: Edits,
    /// Place of the directory in the list.
    place: usize,
    /// Another file of the same directory that describes it.
    rival: Option<PathBuf>,
}

/// What the directories hold.
#[derive(Debug, Default)]
pub(super) struct Found {
    devices: HashMap<Name, Device>,
    /// Files that can't be used, and why.
    problems: Vec<String>,
}

impl Found {
    /// The device of that name.
    pub(super) fn device(&self, name: &Name, directories: &[PathBuf]) -> Result<&Device, Error> {
        let unknown = || Error::Unknown {
            name: name.to_string(),
            directories: directories
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
            problems: self.problems.iter().map(|problem| format!("; {problem}")).collect(),
        };
        let device = self.devices.get(name).ok_or_else(unknown)?;
        match &device.rival {
            Some(rival) => Err(Error::Ambiguous {
                name: name.to_string(),
                first: device.file.clone(),
                second: rival.clone(),
            }),
            None => Ok(device),
        }
    }

    fn add(&mut self, name: Name, device: Device) {
        match self.devices.get_mut(&name) {
            Some(old) if old.place == device.place => old.rival = Some(device.file),
            // A later directory overrides.
            _ => {
                self.devices.insert(name, device);
            }
        }
    }
}

/// Reads all files of the directories. One that is not there is fine.
pub(super) fn scan(directories: &[PathBuf]) -> Found {
    let mut found = Found::default();
    for (place, directory) in directories.iter().enumerate() {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                found.problems.push(format!("{}: {error}", directory.display()));
                continue;
            }
        };
        let known = |path: &Path| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
        let mut files: Vec<PathBuf> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| known(path) && path.is_file())
            .collect();
        files.sort();
        if files.len() > MOST_FILES {
            let rest = files.len() - MOST_FILES;
            found.problems.push(format!("{}: {rest} files too many", directory.display()));
            files.truncate(MOST_FILES);
        }
        for path in files {
            if let Err(problem) = read(&path).and_then(|file| take(&mut found, file, &path, place)) {
                found.problems.push(format!("{}: {problem}", path.display()));
            }
        }
    }
    found
}

fn read(path: &Path) -> Result<File, String> {
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = String::new();
    file.take(LARGEST + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > LARGEST {
        return Err(format!("larger than {LARGEST} bytes"));
    }
    if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|error| first_line(&error.to_string()))
    }
}

/// The parser shows the text around the mistake; a log line has no room for it.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

fn take(found: &mut Found, file: File, path: &Path, place: usize) -> Result<(), String> {
    let known = matches!(file.cdi_version.split_once('.'), Some(("0" | "1", _)));
    if !known {
        return Err(format!("cdiVersion {:?} is not known: 0.3.0 to 1.1.0 are", file.cdi_version));
    }
    let mut devices = Vec::new();
    for device in file.devices {
        let name = Name::new(&file.kind, &device.name)
            .ok_or_else(|| format!("{}={} is no name of a device", file.kind, device.name))?;
        if devices.iter().any(|(other, _)| *other == name) {
            return Err(format!("describes {name} twice"));
        }
        devices.push((name, device.container_edits));
    }
    for (name, edits) in devices {
        let (file, general) = (path.to_owned(), file.container_edits.clone());
        found.add(name, Device { file, general, edits, place, rival: None });
    }
    Ok(())
}
