//! Image references: `[host[:port]/]path[:tag][@digest]`, normalised as the Docker world writes them.
//!
//! A name without a host belongs to `docker.io`, one without a namespace there to `library/`, one without tag and
//! digest means `:latest`. With tag and digest the digest decides and the tag is dropped, so that what is stored never
//! claims that a tag pointed somewhere.

use std::fmt;
use std::str::FromStr;

use super::digest::{self, Digest};

/// The registry that short names belong to.
const DEFAULT_HOST: &str = "docker.io";
/// Where that registry really answers.
const DEFAULT_ENDPOINT: &str = "registry-1.docker.io";
/// Longest name (host and path), as every registry has it.
const NAME_LIMIT: usize = 255;
/// Longest tag (OCI distribution-spec, "Pulling manifests").
const TAG_LIMIT: usize = 128;
/// Longest text that is looked at at all.
const TEXT_LIMIT: usize = NAME_LIMIT + TAG_LIMIT + 256;

/// Why a text is no reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// A part is longer than registries allow.
    #[error("the {part} of the image reference is longer than {limit} characters")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// How long it may be.
        limit: usize,
    },
    /// The host is not a host.
    #[error("{0:?} is not a registry host")]
    Host(String),
    /// The path has characters or an order of them that no registry takes.
    #[error("{0:?} is not a repository path (lower-case letters, digits and single separators)")]
    Path(String),
    /// The tag has characters that no registry takes.
    #[error("{0:?} is not a tag")]
    Tag(String),
    /// The digest is none.
    #[error("the digest of the image reference")]
    Digest(#[from] digest::Error),
}

/// What of a repository is meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Whatever the tag points to now.
    Tag(String),
    /// Exactly this manifest.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tag(tag) => f.write_str(tag),
            Target::Digest(digest) => fmt::Display::fmt(digest, f),
        }
    }
}

/// A normalised image reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    host: String,
    path: String,
    target: Target,
}

impl Reference {
    /// The registry's name as the reference has it (`docker.io`, `localhost:5000`).
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host that answers for the registry's name.
    pub fn endpoint(&self) -> &str {
        if self.host == DEFAULT_HOST { DEFAULT_ENDPOINT } else { &self.host }
    }

    /// The repository's path within the registry.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Tag or digest.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Host and path, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.host, self.path)
    }

    /// The same repository at a digest.
    pub fn at(&self, digest: Digest) -> String {
        format!("{}/{}@{digest}", self.host, self.path)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if matches!(self.target, Target::Tag(_)) { ':' } else { '@' };
        write!(f, "{}/{}{mark}{}", self.host, self.path, self.target)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::Empty);
        }
        if text.len() > TEXT_LIMIT {
            return Err(Error::TooLong { part: "text", limit: TEXT_LIMIT });
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon after the last slash parts the tag; one before it belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        let (host, path) = split_host(name);
        check_host(&host)?;
        check_path(&path)?;
        if host.len() + 1 + path.len() > NAME_LIMIT {
            return Err(Error::TooLong { part: "name", limit: NAME_LIMIT });
        }
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let target = match (digest, tag) {
            (Some(digest), _) => Target::Digest(digest),
            (None, tag) => Target::Tag(tag.unwrap_or("latest").to_owned()),
        };
        Ok(Self { host, path, target })
    }
}

/// Parts host and path, filling in what a short name leaves out.
fn split_host(name: &str) -> (String, String) {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || has_upper(first) => {
            (first, rest)
        }
        _ => (DEFAULT_HOST, name),
    };
    let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
    let path = match host == DEFAULT_HOST && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    (host.to_owned(), path)
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), Error> {
    let refused = || Error::Host(host.to_owned());
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(refused)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| refused())?;
            ("v6", after.strip_prefix(':').or((after.is_empty()).then_some("1")).ok_or_else(refused)?)
        }
        None => host.split_once(':').unwrap_or((host, "1")),
    };
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    if !digits || port.parse::<u16>().is_err() {
        return Err(refused());
    }
    let label = |label: &str| {
        let bytes = label.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    if name.split('.').all(label) { Ok(()) } else { Err(refused()) }
}

/// Components of letters and digits parted by `.`, `_`, `__` or dashes (OCI distribution-spec, `<name>`).
fn check_path(path: &str) -> Result<(), Error> {
    let component = |component: &str| {
        let bytes = component.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
        plain(first)
            && plain(last)
            && bytes.split(plain).all(|separator| {
                matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
            })
    };
    if path.split('/').all(component) { Ok(()) } else { Err(Error::Path(path.to_owned())) }
}

fn check_tag(tag: &str) -> Result<(), Error> {
    if tag.len() > TAG_LIMIT {
        return Err(Error::TooLong { part: "tag", limit: TAG_LIMIT });
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let mut bytes = tag.bytes();
    let good = bytes.next().is_some_and(word) && bytes.all(|b| word(b) || b == b'.' || b == b'-');
    if good { Ok(()) } else { Err(Error::Tag(tag.to_owned())) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn short_names_are_completed() {
        let digest = Digest::of(b"x");
        for (given, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_owned()),
            ("bitnami/redis", "docker.io/bitnami/redis:latest".to_owned()),
            ("docker.io/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a/b__c:T-1", "localhost:5000/a/b__c:T-1".to_owned()),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10".to_owned()),
            ("[::1]:5000/a", "[::1]:5000/a:latest".to_owned()),
            (&format!("a.b/c:tag@{digest}"), format!("a.b/c@{digest}")),
        ] {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), full, "{given}");
            assert_eq!(full.parse::<Reference>().unwrap().to_string(), full, "stable");
        }
        assert_eq!("busybox".parse::<Reference>().unwrap().endpoint(), "registry-1.docker.io");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("a.b/{}", "x".repeat(300));
        let tag = format!("a.b/c:{}", "x".repeat(129));
        for bad in [
            "",
            "/",
            "a//b",
            "UPPER",
            "a.b/UPPER",
            "a.b/c:",
            "a.b/c:-x",
            "a.b/c@sha256:12",
            "a.b/c@",
            "a b",
            "a.b:99999/c",
            "a.b:x/c",
            "-a.b/c",
            "a.b/../c",
            "a.b/c/",
            "a.b/.c",
            "a.b/c___d",
            "a.b/c._d",
            "http://a.b/c",
            "[::1/c",
            "[zz]:1/c",
            "a\n",
            "a.b/c:t/g@x",
            &long,
            &tag,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }
}
