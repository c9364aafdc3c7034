//! Whom the process runs as: ids and names, from the container's configuration over the image's, looked up in the
//! image's own `/etc/passwd` and `/etc/group`.

use super::{Error, SpecInput, layers};
use crate::proto::runtime::v1::{ContainerUser, LinuxContainerUser, SupplementalGroupsPolicy};

/// Far above any real file; what is larger is an attack on our memory.
const MAX_FILE: u64 = 4 << 20;

/// The process's identity.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary group first.
    pub groups: Vec<u32>,
}

impl User {
    /// As the CRI reports it in a container's status.
    pub fn to_cri(&self) -> ContainerUser {
        ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: self.uid.into(),
                gid: self.gid.into(),
                supplemental_groups: self.groups.iter().map(|gid| i64::from(*gid)).collect(),
            }),
        }
    }
}

/// A line of `/etc/passwd`.
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

/// A line of `/etc/group`.
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// A user or group as somebody wrote it.
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

/// Resolves the container's user.
pub(super) fn resolve(input: &SpecInput<'_>) -> Result<User, Error> {
    const USER: &str = "linux.security_context.run_as_user";
    const USERNAME: &str = "linux.security_context.run_as_username";
    const GROUP: &str = "linux.security_context.run_as_group";
    const IMAGE: &str = "user of the image";

    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let run_as_user = context.and_then(|c| c.run_as_user).map(|v| id(USER, v.value)).transpose()?;
    let run_as_group = context.and_then(|c| c.run_as_group).map(|v| id(GROUP, v.value)).transpose()?;
    let username = context.map(|c| c.run_as_username.as_str()).unwrap_or_default();
    let of_image = input.image.config().as_ref().and_then(|c| c.user().as_deref()).unwrap_or_default().trim();

    // A name is more specific than the number beside it; the image counts only when the container says nothing.
    let (field, user, group_text) = if !username.is_empty() {
        (USERNAME, Some(wanted(username)), None)
    } else if let Some(uid) = run_as_user {
        (USER, Some(Wanted::Id(uid)), None)
    } else if let Some(gid) = run_as_group {
        // cri-api: "run_as_group should only be specified when run_as_user or run_as_username is specified".
        return Err(Error::invalid(GROUP, gid.to_string(), "needs run_as_user or run_as_username beside it"));
    } else {
        match of_image.split_once(':') {
            Some((user, group)) => (IMAGE, Some(user).filter(|u| !u.is_empty()).map(wanted), Some(group)),
            None => (IMAGE, Some(of_image).filter(|u| !u.is_empty()).map(wanted), None),
        }
    };
    let group = match (run_as_group, group_text) {
        (Some(gid), _) => Some(Wanted::Id(gid)),
        (None, Some(text)) if !text.is_empty() => Some(wanted(text)),
        _ => None,
    };

    let accounts = accounts(input)?;
    let user = user.unwrap_or(Wanted::Id(0));
    let account = accounts.iter().find(|account| match user {
        Wanted::Id(uid) => account.uid == uid,
        Wanted::Name(name) => account.name == name,
    });
    let uid = match (&user, account) {
        (_, Some(account)) => account.uid,
        (Wanted::Id(uid), None) => *uid,
        (Wanted::Name(name), None) => return Err(Error::UnknownUser { field, user: (*name).to_owned() }),
    };

    let groups = groups(input)?;
    let gid = match group {
        Some(Wanted::Id(gid)) => gid,
        Some(Wanted::Name(name)) => groups
            .iter()
            .find(|group| group.name == name)
            .map(|group| group.gid)
            .ok_or_else(|| Error::UnknownGroup { field, group: name.to_owned() })?,
        // A number that the image does not know gets group 0, as Docker and containerd do.
        None => account.map_or(0, |account| account.gid),
    };

    let mut supplementary = vec![gid];
    let policy = context.map_or(0, |c| c.supplemental_groups_policy);
    match SupplementalGroupsPolicy::try_from(policy) {
        // KEP-3619: Merge also takes the groups whose members the image lists the user in.
        Ok(SupplementalGroupsPolicy::Merge) => {
            if let Some(account) = account {
                let member = |group: &&Group| group.members.contains(&account.name);
                supplementary.extend(groups.iter().filter(member).map(|group| group.gid));
            }
        }
        Ok(SupplementalGroupsPolicy::Strict) => {}
        Err(_) => {
            return Err(Error::invalid(
                "linux.security_context.supplemental_groups_policy",
                policy.to_string(),
                "no such policy",
            ));
        }
    }
    for gid in context.map(|c| c.supplemental_groups.as_slice()).unwrap_or_default() {
        supplementary.push(id("linux.security_context.supplemental_groups", *gid)?);
    }
    let mut seen = std::collections::HashSet::new();
    supplementary.retain(|gid| seen.insert(*gid));
    Ok(User { uid, gid, groups: supplementary })
}

/// The largest id is not one: the kernel's calls take it for "leave as it is".
fn id(field: &'static str, value: i64) -> Result<u32, Error> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| Error::invalid(field, value.to_string(), "must be from 0 to 4294967294"))
}

fn wanted(text: &str) -> Wanted<'_> {
    match text.parse::<u32>() {
        Ok(id) if id != u32::MAX && text.bytes().all(|b| b.is_ascii_digit()) => Wanted::Id(id),
        _ => Wanted::Name(text),
    }
}

fn accounts(input: &SpecInput<'_>) -> Result<Vec<Account>, Error> {
    let text = layers::read(input.lower_dirs, "/etc/passwd", MAX_FILE)?.unwrap_or_default();
    Ok(lines(&text)
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = fields.nth(1)?.parse().ok()?;
            let gid = fields.next()?.parse().ok()?;
            Some(Account { name: name.to_owned(), uid, gid })
        })
        .collect())
}

fn groups(input: &SpecInput<'_>) -> Result<Vec<Group>, Error> {
    let text = layers::read(input.lower_dirs, "/etc/group", MAX_FILE)?.unwrap_or_default();
    Ok(lines(&text)
        .filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default();
            let members = members.split(',').map(str::trim).filter(|m| !m.is_empty()).map(str::to_owned);
            Some(Group { name: name.to_owned(), gid, members: members.collect() })
        })
        .collect())
}

/// Lines that are text and no comment. One bad line does not make the others bad.
fn lines(text: &[u8]) -> impl Iterator<Item = &str> {
    text.split(|b| *b == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::super::testing::Fixture;
    use super::*;
    use crate::proto::runtime::v1::Int64Value;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken\nbad:x:minus:1::\n\
                          default-user:x:1000:1000::/home:/bin/sh\nwww:x:33:33:www\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:www, default-user\ngroup-defined-in-image:x:50000:default-user\n\
                         www:x:33:\ncopy:x:50:www\n";

    fn fixture(image_user: &str) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.image_config(serde_json::json!({"User": image_user}));
        fixture.image_file("etc/passwd", PASSWD.as_bytes());
        fixture.image_file("etc/group", GROUP.as_bytes());
        fixture
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn of_the_image() {
        for (text, want) in [
            ("", user(0, 0, &[0])),
            ("www", user(33, 33, &[33, 50])),
            ("33", user(33, 33, &[33, 50])),
            ("4711", user(4711, 0, &[0])),
            ("www:staff", user(33, 50, &[50])),
            ("www:7", user(33, 7, &[7, 50])),
            ("4711:4712", user(4711, 4712, &[4712])),
            (":staff", user(0, 50, &[50])),
            ("www:", user(33, 33, &[33, 50])),
        ] {
            assert_eq!(resolve(&fixture(text).input()).unwrap(), want, "{text:?}");
        }
    }

    #[test]
    fn of_the_container() {
        let value = |value| Some(Int64Value { value });
        for (uid, gid, name, supplemental, policy, want) in [
            (value(1000), None, "", vec![1234], 0, user(1000, 1000, &[1000, 50, 50000, 1234])),
            (value(1000), None, "", vec![1234, 1234], 1, user(1000, 1000, &[1000, 1234])),
            (value(1000), value(5), "", vec![], 0, user(1000, 5, &[5, 50, 50000])),
            (value(7), None, "", vec![], 0, user(7, 0, &[0])),
            (value(7), value(8), "", vec![9], 1, user(7, 8, &[8, 9])),
            (None, None, "www", vec![], 0, user(33, 33, &[33, 50])),
            (value(1000), None, "www", vec![], 0, user(33, 33, &[33, 50])),
            (None, value(2), "www", vec![], 1, user(33, 2, &[2])),
            (None, None, "1000", vec![], 1, user(1000, 1000, &[1000])),
            (None, None, "", vec![4], 1, user(33, 33, &[33, 4])),
        ] {
            let mut fixture = fixture("www");
            let context = fixture.context();
            context.run_as_user = uid;
            context.run_as_group = gid;
            context.run_as_username = name.into();
            context.supplemental_groups = supplemental;
            context.supplemental_groups_policy = policy;
            assert_eq!(resolve(&fixture.input()).unwrap(), want);
        }
    }

    #[test]
    fn refused() {
        let refuse = |image: &str, change: &dyn Fn(&mut Fixture)| {
            let mut fixture = fixture(image);
            change(&mut fixture);
            resolve(&fixture.input()).unwrap_err().to_string()
        };
        let keep = |_: &mut Fixture| {};
        assert_eq!(
            refuse("ghost", &keep),
            "user of the image \"ghost\": no such user in the image's /etc/passwd"
        );
        assert!(refuse("www:ghosts", &keep).contains("no such group"));
        assert!(refuse("4294967295", &keep).contains("no such user"));
        assert!(refuse("+5", &keep).contains("no such user"));
        let number = |value| Some(Int64Value { value });
        assert!(refuse("", &|f| f.context().run_as_group = number(1)).contains("run_as_user"));
        assert!(refuse("", &|f| f.context().run_as_user = number(-1)).contains("\"-1\""));
        assert!(refuse("", &|f| f.context().run_as_user = number(1 << 32)).contains("4294967294"));
        assert!(refuse("", &|f| f.context().supplemental_groups = vec![-5]).contains("\"-5\""));
        assert!(refuse("", &|f| f.context().supplemental_groups_policy = 9).contains("no such policy"));
        assert!(refuse("", &|f| f.context().run_as_username = "ghost".into()).contains("run_as_username"));
    }

    #[test]
    fn images_without_or_with_hostile_files() {
        let mut bare = Fixture::new();
        bare.image_config(serde_json::json!({"User": "12:13"}));
        assert_eq!(resolve(&bare.input()).unwrap(), user(12, 13, &[13]));
        bare.image_config(serde_json::json!({"User": "www"}));
        assert!(matches!(resolve(&bare.input()), Err(Error::UnknownUser { .. })));
        let huge = vec![b'a'; usize::try_from(MAX_FILE).unwrap() + 1];
        bare.image_file("etc/passwd", &huge);
        assert!(matches!(resolve(&bare.input()), Err(Error::ImageFileTooLarge { .. })));
        bare.image_file("etc/passwd", b"\xff\xfe:x:1:1::\n::::\nwww:x:99999999999:1::\nwww:x:33:34::/:\n");
        assert_eq!(resolve(&bare.input()).unwrap(), user(33, 34, &[34]));
        // A link out of the image finds the image's own file or nothing.
        bare.image_link("etc/passwd", "/../../../../etc/passwd");
        assert!(matches!(resolve(&bare.input()), Err(Error::ImageFile { .. } | Error::UnknownUser { .. })));
    }

    #[test]
    fn in_the_status() {
        let status = user(1, 2, &[2, 3]).to_cri().linux.unwrap();
        assert_eq!((status.uid, status.gid, status.supplemental_groups), (1, 2, vec![2, 3]));
    }
}
