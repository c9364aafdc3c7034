//! Reads single values: each method takes a key, and notes what is wrong with its value.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;

use super::problem::{Origin, Problem, suggestion};
use super::settings::{Entry, Settings, Value};
use super::value;

/// The settings being read, and what is wrong with them so far.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    pub(super) settings: &'a Settings,
    pub(super) problems: RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    pub(super) fn entry(&self, key: &str) -> Option<&'a Entry> {
        self.settings.entries.get(key)
    }

    /// Notes that the value of a key is wrong.
    pub(super) fn refuse(&self, key: &str, message: impl std::fmt::Display) {
        let origin = self.entry(key).map_or(Origin::Default, |entry| entry.origin.clone());
        self.refuse_at(origin, key, message);
    }

    pub(super) fn refuse_at(&self, origin: Origin, key: &str, message: impl std::fmt::Display) {
        self.problems.borrow_mut().push(Problem { origin, message: format!("`{key}`: {message}") });
    }

    pub(super) fn text(&self, key: &str) -> String {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }

    pub(super) fn list(&self, key: &str) -> Vec<(String, Origin)> {
        match self.entry(key).map(|entry| &entry.value) {
            Some(Value::List(entries)) => entries
                .iter()
                .filter_map(|entry| match &entry.value {
                    Value::Text(text) => Some((text.clone(), entry.origin.clone())),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn number<T>(&self, key: &str, range: RangeInclusive<i64>) -> Option<T>
    where
        T: TryFrom<i64>,
    {
        let Some(Value::Integer(number)) = self.entry(key).map(|entry| &entry.value) else { return None };
        let fitting = T::try_from(*number).ok().filter(|_| range.contains(number));
        if fitting.is_none() {
            self.refuse(key, format!("{number} is not within {} to {}", range.start(), range.end()));
        }
        fitting
    }

    pub(super) fn size(&self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let size = match self.entry(key).map(|entry| &entry.value)? {
            Value::Integer(number) => u64::try_from(*number).map_err(|_| format!("{number} is negative")),
            Value::Text(text) => value::size(text),
            _ => return None,
        };
        match size {
            Ok(size) if range.contains(&size) => return Some(size),
            Ok(size) => {
                self.refuse(key, format!("{size} bytes are not within {} to {}", range.start(), range.end()));
            }
            Err(message) => self.refuse(key, message),
        }
        None
    }

    pub(super) fn duration(&self, key: &str, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.entry(key)?;
        match value::duration(&self.text(key)) {
            Ok(duration) if range.contains(&duration) => return Some(duration),
            Ok(duration) => {
                self.refuse(
                    key,
                    format!("{duration:?} is not within {:?} to {:?}", range.start(), range.end()),
                );
            }
            Err(message) => self.refuse(key, message),
        }
        None
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.entry(key)?.value {
            Value::Boolean(boolean) => Some(boolean),
            _ => None,
        }
    }

    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Option<T> {
        self.entry(key)?;
        let text = self.text(key);
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.refuse(key, format!("no such choice: {text:?}{}", suggestion(&text, &names)));
        }
        found
    }

    /// An absolute path, or `None` for the empty string.
    pub(super) fn optional_path(&self, key: &str) -> Option<PathBuf> {
        let text = self.text(key);
        if text.is_empty() { None } else { self.absolute(key, &text, None) }
    }

    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.entry(key)?;
        self.absolute(key, &self.text(key), None)
    }

    pub(super) fn paths(&self, key: &str) -> Vec<PathBuf> {
        self.list(key)
            .into_iter()
            .filter_map(|(text, origin)| self.absolute(key, &text, Some(origin)))
            .collect()
    }

    pub(super) fn absolute(&self, key: &str, text: &str, origin: Option<Origin>) -> Option<PathBuf> {
        let path = Path::new(text);
        if path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir) {
            return Some(path.to_owned());
        }
        let message = format!("{text:?} is not an absolute path without \"..\"");
        match origin {
            Some(origin) => self.refuse_at(origin, key, message),
            None => self.refuse(key, message),
        }
        None
    }

    /// An IP address with its port.
    pub(super) fn socket_address(&self, key: &str) -> Option<SocketAddr> {
        self.entry(key)?;
        let text = self.text(key);
        let address = text.parse().ok();
        if address.is_none() {
            self.refuse(
                key,
                format!("{text:?} is not an IP address with a port, such as \"127.0.0.1:9477\""),
            );
        }
        address
    }

    /// Address pools that don't overlap.
    pub(super) fn subnets(&self, key: &str) -> Vec<IpNetwork> {
        let mut subnets: Vec<IpNetwork> = Vec::new();
        let listed = self.list(key);
        if listed.is_empty() && self.entry(key).is_some() {
            self.refuse(key, "names no subnet");
        }
        for (text, origin) in listed {
            match subnet(&text) {
                Ok(subnet) => {
                    if let Some(other) = subnets.iter().find(|other| overlap(other, &subnet)) {
                        self.refuse_at(origin, key, format!("{subnet} and {other} overlap"));
                    }
                    subnets.push(subnet);
                }
                Err(message) => self.refuse_at(origin, key, message),
            }
        }
        subnets
    }
}

/// Whether a name has only letters, digits and some other characters.
pub(super) fn name_fits(name: &str, longest: usize, also: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    !name.is_empty() && name.len() <= longest && name.chars().all(fits)
}

/// A pool that addresses can come from: network bits only, and room for a gateway and two pods.
pub(super) fn subnet(text: &str) -> Result<IpNetwork, String> {
    let wrong = || format!("{text:?} is no subnet: write it as \"10.85.0.0/16\" or \"fd85:be:27::/64\"");
    if !text.contains('/') {
        return Err(wrong());
    }
    let subnet: IpNetwork = text.parse().map_err(|_| wrong())?;
    if subnet.ip() != subnet.network() {
        let right = format!("{}/{}", subnet.network(), subnet.prefix());
        return Err(format!("{text} has bits beyond its prefix (did you mean `{right}`?)"));
    }
    let (smallest, special) = match subnet.ip() {
        IpAddr::V4(ip) => (30, ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()),
        IpAddr::V6(ip) => (126, ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()),
    };
    if subnet.prefix() > smallest {
        return Err(format!("{text} is too small: at most /{smallest}"));
    }
    if special {
        return Err(format!("{text} is not for pods: loopback, multicast or unspecified"));
    }
    Ok(subnet)
}

/// Whether two subnets share an address.
pub(super) fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}
