//! Names of devices: `vendor.com/class=name`.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// A device's qualified name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// `vendor/class`.
    pub(super) kind: String,
    /// Of the device, within its kind.
    pub(super) device: String,
}

impl Name {
    pub(super) fn new(kind: &str, device: &str) -> Option<Self> {
        let (vendor, class) = kind.split_once('/')?;
        let fits = is_vendor(vendor) && is_class(class) && is_device(device);
        fits.then(|| Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts = text.split_once('=').and_then(|(kind, device)| Self::new(kind, device));
        parts.ok_or_else(|| Error::Name { name: text.chars().take(256).collect() })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.kind, self.device)
    }
}

/// CDI, SPEC.md, "Kind": begins with a letter, ends with a letter or digit, and in between may have some more.
fn is_part(text: &str, digit_first: bool, between: &str) -> bool {
    let ends = |c: char| c.is_ascii_alphanumeric();
    let begins = |c: char| c.is_ascii_alphabetic() || (digit_first && c.is_ascii_digit());
    text.len() <= 256
        && text.starts_with(begins)
        && text.ends_with(ends)
        && text.chars().all(|c| ends(c) || between.contains(c))
}

fn is_vendor(text: &str) -> bool {
    is_part(text, false, "_-.")
}

fn is_class(text: &str) -> bool {
    is_part(text, false, "_-.")
}

fn is_device(text: &str) -> bool {
    is_part(text, true, "_-.:")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names() {
        for good in ["vendor.com/gpu=0", "a/b=c", "nvidia.com/gpu=GPU-1:2.x_y", "v1-2.x/class_a=all"] {
            assert_eq!(good.parse::<Name>().unwrap().to_string(), good);
        }
        for bad in ["", "gpu", "vendor.com/gpu", "vendor.com=0", "/gpu=0", "vendor/=0", "v/c=", "1v/c=d"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
        for bad in ["v/c=d e", "v/c=-d", "v/c/x=d", "v/c=../d", &format!("v/c={}", "x".repeat(300))] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }
}
