//! Devices by name: the Container Device Interface (github.com/cncf-tags/container-device-interface, SPEC.md).
//!
//! Vendors put files into a few directories, `/etc/cdi` and `/var/run/cdi` unless configured otherwise: each describes
//! devices of one kind and the edits of a container's specification that each takes. A container names devices as
//! `vendor.com/class=name`, in `CDI_devices` or in annotations below `cdi.k8s.io/`.
//!
//! The files are read when a container asks for a device, so there is nothing to refresh and nothing to go stale. A
//! directory further down the list overrides those before it; two files of one directory that describe the same device make
//! it unusable, and a file that can't be read is named to who asks for a device that is nowhere else.

mod edits;
mod file;
mod name;
mod scan;

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Spec;

use crate::error::{Classify, Kind};

pub use self::name::Name;

/// Prefix of annotations that name devices.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Devices of one container.
const MOST: usize = 1024;

/// Why a container can't have a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// That is no name of a device.
    #[error("{name:?} is no CDI device: it is written vendor.com/class=name")]
    Name {
        /// As it was asked for.
        name: String,
    },
    /// More devices than anybody needs.
    #[error("more than {MOST} CDI devices")]
    TooMany,
    /// No configured directory: CDI is turned off.
    #[error("CDI device {name}: CDI is turned off here (devices.cdi_spec_dirs is empty)")]
    Off {
        /// The device.
        name: String,
    },
    /// Nobody describes the device.
    #[error("CDI device {name} is in none of {directories}{problems}")]
    Unknown {
        /// The device.
        name: String,
        /// The directories searched.
        directories: String,
        /// What kept files from being read, with the separator before it.
        problems: String,
    },
    /// Two files of the same directory describe the device.
    #[error("CDI device {name} is described by both {first} and {second}: remove one")]
    Ambiguous {
        /// The device.
        name: String,
        /// A file.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// What the device takes can't be had.
    #[error("CDI device {name} of {file}: {what}: {reason}")]
    Edit {
        /// The device.
        name: String,
        /// The file that describes it.
        file: PathBuf,
        /// Which edit.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Classify for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Name { .. } | Self::TooMany => Kind::InvalidArgument,
            Self::Unknown { .. } => Kind::NotFound,
            Self::Off { .. } | Self::Ambiguous { .. } | Self::Edit { .. } => Kind::FailedPrecondition,
        }
    }
}

/// Where devices are described.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    directories: Vec<PathBuf>,
}

impl Registry {
    /// Devices of the files in `directories`, of which a later one overrides the earlier. None: CDI is turned off.
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// Makes `spec` have the devices. Reads files: where blocking is allowed.
    ///
    /// # Errors
    /// [`Error`] names the device and what is wrong with it; `spec` is then of no use.
    pub fn inject<'a>(&self, spec: &mut Spec, names: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let mut wanted: Vec<Name> = Vec::new();
        for text in names {
            let name: Name = text.parse()?;
            if !wanted.contains(&name) {
                wanted.push(name);
            }
            if wanted.len() > MOST {
                return Err(Error::TooMany);
            }
        }
        let Some(first) = wanted.first() else { return Ok(()) };
        if self.directories.is_empty() {
            return Err(Error::Off { name: first.to_string() });
        }
        let found = scan::scan(&self.directories);
        let mut general: Vec<&PathBuf> = Vec::new();
        for name in &wanted {
            let device = found.device(name, &self.directories)?;
            // What all devices of the file need, once.
            if !general.contains(&&device.file) {
                general.push(&device.file);
                edits::apply(spec, &device.general, name, &device.file)?;
            }
            edits::apply(spec, &device.edits, name, &device.file)?;
        }
        Ok(())
    }
}

/// The devices that annotations name.
pub fn annotated(annotations: &HashMap<String, String>) -> Vec<&str> {
    let mut keys: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)).collect();
    keys.sort();
    keys.into_iter().flat_map(|(_, value)| value.split(',')).map(str::trim).collect()
}

#[cfg(test)]
mod tests;
