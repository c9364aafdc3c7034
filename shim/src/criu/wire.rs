//! Messages of criu's RPC, by the field numbers of its `images/rpc.proto`: the few that are needed, written and read by hand.

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, CodedOutputStream, MessageField, Result};

/// `criu_req_type`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
pub(crate) enum Kind {
    Dump = 1,
    Restore = 2,
    Notify = 6,
}

/// `criu_cg_mode.IGNORE`: the cgroup is the runtime's.
const CGROUPS_IGNORED: i32 = 0;
/// `criu_network_lock_method.SKIP`: no packet filter is touched, no program is run for it.
const NETWORK_UNLOCKED: i32 = 3;

/// `criu_opts`: what a request asks for. Booleans that are false and empty texts are left out.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Directory of the images.
    pub(crate) images: i32,
    /// Directory of the log and of the statistics.
    pub(crate) work: i32,
    pub(crate) log_file: String,
    /// The first process to dump.
    pub(crate) pid: Option<i32>,
    pub(crate) leave_running: bool,
    /// Where the root file system is mounted.
    pub(crate) root: String,
    /// Mounts from outside: dumping, mount point and name; restoring, name and what to bind.
    pub(crate) mounts: Vec<(String, String)>,
    /// Things from outside that are not mounts, as `net[4026531840]:name`.
    pub(crate) external: Vec<String>,
    /// Descriptors that stand for things from outside.
    pub(crate) inherited: Vec<(String, i32)>,
    /// Namespaces to join: kind and path.
    pub(crate) joined: Vec<(String, String)>,
    /// The restored process becomes a child of who asked for it.
    pub(crate) sibling: bool,
    /// Established connections are closed as they are restored: they have another address.
    pub(crate) close_connections: bool,
    /// Largest deleted file that is kept with the images, in bytes.
    pub(crate) ghost_limit: u32,
    /// A profile of AppArmor or a label of SELinux in place of the dumped one.
    pub(crate) lsm_profile: String,
}

/// A message from criu.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) kind: i32,
    pub(crate) success: bool,
    /// The first process, restored.
    pub(crate) pid: i32,
    /// What it tells of: `post-dump`, `orphan-pts-master` and others.
    pub(crate) script: String,
}

/// `criu_req` of a dump or a restore.
pub(crate) fn request(kind: Kind, options: &Options) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    options.write(kind, &mut CodedOutputStream::vec(&mut body))?;
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    out.write_enum(1, kind as i32)?;
    out.write_bytes(2, &body)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

/// `criu_req` that answers what criu told of.
pub(crate) fn noted(success: bool) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut out = CodedOutputStream::vec(&mut bytes);
    out.write_enum(1, Kind::Notify as i32)?;
    out.write_bool(3, success)?;
    out.flush()?;
    drop(out);
    Ok(bytes)
}

impl Options {
    fn write(&self, kind: Kind, out: &mut CodedOutputStream<'_>) -> Result<()> {
        out.write_int32(1, self.images)?;
        if let Some(pid) = self.pid {
            out.write_int32(2, pid)?;
        }
        flag(out, 3, self.leave_running)?;
        // Sockets to programs outside, as a log's, connections and locks on files are no obstacle.
        flag(out, 4, true)?;
        flag(out, 5, !self.close_connections)?;
        flag(out, 6, kind == Kind::Restore)?;
        flag(out, 8, true)?;
        out.write_int32(9, 4)?;
        out.write_string(10, &self.log_file)?;
        flag(out, 12, true)?;
        if !self.root.is_empty() {
            out.write_string(13, &self.root)?;
        }
        out.write_int32(17, self.work)?;
        for (key, value) in &self.mounts {
            pair(out, 23, key, value)?;
        }
        flag(out, 26, self.sibling)?;
        for (key, fd) in &self.inherited {
            let mut body = Vec::new();
            let mut inner = CodedOutputStream::vec(&mut body);
            inner.write_string(1, key)?;
            inner.write_int32(2, *fd)?;
            inner.flush()?;
            drop(inner);
            out.write_bytes(27, &body)?;
        }
        // Mounts that get what is mounted on the host later.
        flag(out, 29, true)?;
        flag(out, 30, true)?;
        out.write_enum(34, CGROUPS_IGNORED)?;
        if self.ghost_limit > 0 {
            out.write_uint32(35, self.ghost_limit)?;
        }
        for external in &self.external {
            out.write_string(37, external)?;
        }
        for (name, path) in &self.joined {
            pair(out, 39, name, path)?;
        }
        flag(out, 50, true)?;
        flag(out, 52, self.close_connections)?;
        if !self.lsm_profile.is_empty() {
            out.write_string(53, &self.lsm_profile)?;
        }
        out.write_enum(64, NETWORK_UNLOCKED)?;
        out.flush()
    }
}

fn flag(out: &mut CodedOutputStream<'_>, field: u32, value: bool) -> Result<()> {
    if value { out.write_bool(field, true) } else { Ok(()) }
}

fn pair(out: &mut CodedOutputStream<'_>, field: u32, key: &str, value: &str) -> Result<()> {
    let mut body = Vec::new();
    let mut inner = CodedOutputStream::vec(&mut body);
    inner.write_string(1, key)?;
    inner.write_string(2, value)?;
    inner.flush()?;
    drop(inner);
    out.write_bytes(field, &body)
}

/// The fields of a message: number, and value by the reader.
fn fields(bytes: &[u8], mut each: impl FnMut(u32, &mut CodedInputStream<'_>) -> Result<bool>) -> Result<()> {
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        if !each(tag >> 3, &mut input)? {
            containerd_shim_protos::protobuf::rt::skip_field_for_tag(tag, &mut input)?;
        }
    }
    Ok(())
}

/// Reads a `criu_resp`.
pub(crate) fn answer(bytes: &[u8]) -> Result<Answer> {
    let mut answer = Answer::default();
    let (mut restored, mut told) = (Vec::new(), Vec::new());
    fields(bytes, |number, input| {
        match number {
            1 => answer.kind = input.read_int32()?,
            2 => answer.success = input.read_bool()?,
            4 => restored = input.read_bytes()?,
            5 => told = input.read_bytes()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    fields(&restored, |number, input| {
        if number == 1 {
            answer.pid = input.read_int32()?;
        }
        Ok(number == 1)
    })?;
    fields(&told, |number, input| {
        if number == 1 {
            answer.script = input.read_string()?;
        }
        Ok(number == 1)
    })?;
    Ok(answer)
}

/// What a Checkpoint request of the Task service asks for in its options: containerd's `runc.v1.CheckpointOptions`, and beside
/// them fields of ours, which other shims pass over.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// End the container when it is dumped (1).
    pub(crate) exit: bool,
    /// Where criu's log is to lie (9); beside the images otherwise.
    pub(crate) work: String,
    /// The criu program (1001); looked for in PATH otherwise.
    pub(crate) criu: String,
    /// A unix socket (1002): the container stands still until the connection to it ends.
    pub(crate) hold: String,
    /// Nanoseconds that criu may take (1003); 0 is no limit.
    pub(crate) limit: u64,
}

/// Reads [`Asked`]. What asks for a container may come with options of another kind, whose fields have the same numbers.
pub(crate) fn asked(options: &MessageField<Any>) -> Result<Asked> {
    let mut asked = Asked::default();
    let Some(options) = options.as_ref().filter(|any| any.type_url.ends_with(".CheckpointOptions")) else {
        return Ok(asked);
    };
    fields(&options.value, |number, input| {
        match number {
            1 => asked.exit = input.read_bool()?,
            9 => asked.work = input.read_string()?,
            1001 => asked.criu = input.read_string()?,
            1002 => asked.hold = input.read_string()?,
            1003 => asked.limit = input.read_uint64()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(asked)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(kind: &str, value: &[u8]) -> MessageField<Any> {
        MessageField::some(Any { type_url: kind.to_owned(), value: value.to_vec(), ..Default::default() })
    }

    #[test]
    fn options_of_a_runtime_are_not_taken_for_those_of_a_checkpoint() {
        // `systemd_cgroup` and `root` of runc's: 9 is a flag there.
        let asked = asked(&options("containerd.runc.v1.Options", &[0x3a, 2, b'/', b'r', 0x48, 1])).unwrap();
        assert_eq!((asked.exit, asked.work.as_str()), (false, ""));
        assert!(!super::asked(&MessageField::none()).unwrap().exit);
    }

    #[test]
    fn an_answer_is_read() {
        // type NOTIFY, success, notify { script "post-dump", pid 7 }, an unknown field.
        let mut bytes = vec![0x08, 6, 0x10, 1, 0x2a, 13, 0x0a, 9];
        bytes.extend_from_slice(b"post-dump\x10\x07");
        bytes.extend_from_slice(&[0x38, 5]);
        let answer = answer(&bytes).unwrap();
        assert_eq!((answer.kind, answer.success, answer.script.as_str()), (6, true, "post-dump"));
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        assert!(answer(&[0x08, 6, 0x2a, 200]).is_err());
        assert!(asked(&options("containerd.runc.v1.CheckpointOptions", &[0x4a, 9, b'x'])).is_err());
    }

    #[test]
    fn options_of_others_and_ours_are_read_together() {
        let mut bytes = Vec::new();
        let mut out = CodedOutputStream::vec(&mut bytes);
        out.write_bool(1, true).unwrap();
        out.write_string(6, "network").unwrap();
        out.write_string(9, "/work").unwrap();
        out.write_string(1001, "/usr/sbin/criu").unwrap();
        out.flush().unwrap();
        drop(out);
        let asked = asked(&options("containerd.runc.v1.CheckpointOptions", &bytes)).unwrap();
        assert!(asked.exit);
        assert_eq!(
            (asked.work.as_str(), asked.criu.as_str(), asked.hold.as_str()),
            ("/work", "/usr/sbin/criu", "")
        );
    }
}
