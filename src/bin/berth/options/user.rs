//! Who a container runs as: `uid`, `uid:gid`, `name` or `name:gid`.

use anyhow::{Result, bail};
use berth::proto::runtime::v1::Int64Value;

/// A user as the CRI names one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct User {
    /// By number.
    pub uid: Option<Int64Value>,
    /// By name in the image's own passwd; empty when by number.
    pub name: String,
    /// Group by number; absent: the user's own.
    pub gid: Option<Int64Value>,
}

/// Reads `-u`.
pub(crate) fn parse(text: &str) -> Result<User> {
    let (user, group) = match text.split_once(':') {
        None => (text, None),
        Some((user, group)) => (user, Some(group)),
    };
    if user.is_empty() {
        bail!("-u {text}: which user? write UID[:GID] or NAME[:GID]");
    }
    let gid = match group.map(str::parse::<u32>) {
        None => None,
        Some(Ok(gid)) => Some(Int64Value { value: gid.into() }),
        Some(Err(_)) => bail!("-u {text}: the group must be a number, the CRI knows no group names"),
    };
    Ok(match user.parse::<u32>() {
        Ok(uid) => User { uid: Some(Int64Value { value: uid.into() }), name: String::new(), gid },
        Err(_) => User { uid: None, name: user.to_owned(), gid },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn users() {
        let number = |value| Some(Int64Value { value });
        assert_eq!(parse("0").unwrap(), User { uid: number(0), ..User::default() });
        assert_eq!(parse("1000:50").unwrap(), User { uid: number(1000), gid: number(50), ..User::default() });
        assert_eq!(parse("www:50").unwrap(), User { name: "www".into(), gid: number(50), uid: None });
        for text in ["", ":1", "1:wheel", "1:"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
