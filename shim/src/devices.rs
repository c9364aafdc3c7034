//! Device rules on cgroup v2: a small program of the kernel's that says yes or no when a device is opened or made.
//!
//! v2 has no list of devices; it asks programs of type `BPF_PROG_TYPE_CGROUP_DEVICE` attached to the cgroup and those above it.
//! libcgroups leaves that out unless it is built with libbpf. The program goes through the rules from the last to the first: a rule
//! that denies any of what is still asked for denies all; one that allows takes what it allows off what is asked for; when nothing is
//! left, the access is granted, and when rules end before, refused.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys;

const MAKE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// What the runtime specification has every container find in /dev, and terminals: (major, minor), `None` for any.
const ALWAYS: [(i32, Option<i32>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Block and character devices, as the kernel numbers them here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Block = 1,
    Character = 2,
}

/// One rule; `None` is any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<Kind>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Puts the spec's rules, and what every container may, into force for the cgroup at `directory`.
pub(crate) fn enforce(directory: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let mut list: Vec<Rule> = rules.iter().filter_map(translate).collect();
    // Nothing was denied: there is nothing to enforce.
    if list.iter().all(|rule| rule.allow) {
        return Ok(());
    }
    list.extend([Kind::Character, Kind::Block].map(|kind| Rule {
        allow: true,
        kind: Some(kind),
        major: None,
        minor: None,
        access: MAKE,
    }));
    list.extend(ALWAYS.map(|(major, minor)| Rule {
        allow: true,
        kind: Some(Kind::Character),
        major: Some(major),
        minor,
        access: MAKE | READ | WRITE,
    }));
    let directory = fs::File::open(directory)?;
    sys::attach_device_program(directory.as_fd(), &program(&list))
}

fn translate(rule: &LinuxDeviceCgroup) -> Option<Rule> {
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(Kind::Character),
        Some(LinuxDeviceType::P) => return None,
    };
    let number =
        |number: Option<i64>| number.and_then(|number| i32::try_from(number).ok()).filter(|n| *n >= 0);
    let letters = rule.access().as_deref().unwrap_or("rwm");
    let access = letters.bytes().fold(0, |all, letter| match letter {
        b'm' => all | MAKE,
        b'r' => all | READ,
        b'w' => all | WRITE,
        _ => all,
    });
    Some(Rule { allow: rule.allow(), kind, major: number(rule.major()), minor: number(rule.minor()), access })
}

// === the program ===

// Registers: the argument, then what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ASKED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

const LOAD_WORD: u8 = 0x61;
const SET: u8 = 0xb7;
const COPY: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const SKIP_IF_EQUAL: u8 = 0x15;
const SKIP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// One instruction, in the order of `struct bpf_insn` on a little-endian machine or a big-endian one.
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> [u8; 8] {
    let registers = if cfg!(target_endian = "little") { from << 4 | to } else { to << 4 | from };
    let (offset, value) = (offset.to_ne_bytes(), value.to_ne_bytes());
    [code, registers, offset[0], offset[1], value[0], value[1], value[2], value[3]]
}

fn program(rules: &[Rule]) -> Vec<[u8; 8]> {
    let mut code = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(COPY, ASKED, KIND, 0, 0),
        instruction(AND, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ASKED, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let body = if rule.allow {
            vec![
                instruction(AND, ASKED, 0, 0, !rule.access),
                instruction(SKIP_UNLESS_EQUAL, ASKED, 0, 2, 0),
                instruction(SET, RESULT, 0, 0, 1),
                instruction(EXIT, 0, 0, 0, 0),
            ]
        } else {
            vec![
                instruction(COPY, SCRATCH, ASKED, 0, 0),
                instruction(AND, SCRATCH, 0, 0, rule.access),
                instruction(SKIP_IF_EQUAL, SCRATCH, 0, 2, 0),
                instruction(SET, RESULT, 0, 0, 0),
                instruction(EXIT, 0, 0, 0, 0),
            ]
        };
        let conditions: Vec<(u8, i32)> =
            [(KIND, rule.kind.map(|kind| kind as i32)), (MAJOR, rule.major), (MINOR, rule.minor)]
                .into_iter()
                .filter_map(|(register, value)| value.map(|value| (register, value)))
                .collect();
        for (index, (register, value)) in conditions.iter().enumerate() {
            let rest = conditions.len() - index - 1 + body.len();
            let past = i16::try_from(rest).unwrap_or(i16::MAX);
            code.push(instruction(SKIP_UNLESS_EQUAL, *register, 0, past, *value));
        }
        code.extend(body);
    }
    code.extend([instruction(SET, RESULT, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    code
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

    use std::process::Command;

    use super::*;

    /// What the kernel would answer; understands only what `program` makes.
    fn ask(code: &[[u8; 8]], kind: Kind, major: i64, minor: i64, access: i32) -> i64 {
        let mut registers = [0_i64; 8];
        let mut at = 0;
        loop {
            let [opcode, pair, o0, o1, v0, v1, v2, v3] = code[at];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let offset = i16::from_ne_bytes([o0, o1]);
            let value = i64::from(i32::from_ne_bytes([v0, v1, v2, v3]));
            at += 1;
            let mut skip = |yes: bool| at += if yes { usize::try_from(offset).unwrap() } else { 0 };
            match opcode {
                LOAD_WORD => {
                    registers[to] = match offset {
                        0 => i64::from(access) << 16 | kind as i64,
                        4 => major,
                        _ => minor,
                    };
                }
                SET => registers[to] = value,
                COPY => registers[to] = registers[from],
                AND => registers[to] &= value,
                SHIFT_RIGHT => registers[to] >>= value,
                SKIP_IF_EQUAL => skip(registers[to] == value),
                SKIP_UNLESS_EQUAL => skip(registers[to] != value),
                EXIT => return registers[0],
                other => panic!("{other:#x}"),
            }
        }
    }

    fn rules(json: serde_json::Value) -> Vec<Rule> {
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        list.iter().filter_map(translate).collect()
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides() {
        let code = program(&rules(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "access": "w"},
            {"allow": false, "type": "c", "major": 10, "minor": 7, "access": "w"},
            {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"},
        ])));
        let is = |kind, major, minor, access| ask(&code, kind, major, minor, access);
        assert_eq!(is(Kind::Character, 1, 3, READ | WRITE | MAKE), 1);
        assert_eq!(is(Kind::Character, 1, 5, READ), 0);
        assert_eq!(is(Kind::Block, 1, 3, READ), 0);
        // Allowed by two rules together.
        assert_eq!(is(Kind::Character, 10, 1, READ | WRITE), 1);
        assert_eq!(is(Kind::Character, 10, 1, READ | MAKE), 0);
        assert_eq!(is(Kind::Character, 10, 7, READ), 1);
        assert_eq!(is(Kind::Character, 10, 7, READ | WRITE), 0);
        assert_eq!(is(Kind::Block, 8, 200, READ), 1);
        assert_eq!(is(Kind::Block, 8, 200, WRITE), 0);
    }

    #[test]
    fn the_kernel_takes_the_program_and_obeys() {
        let base = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists());
        let Some(base) = base else { return };
        let directory = base.join(format!("berth-shim-devices-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(serde_json::json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        ]))
        .unwrap();
        let result = enforce(&directory, &list);
        let script = format!(
            "echo $$ > {}/cgroup.procs; : < /dev/null && : < /dev/zero && : > /dev/kmsg 2> /dev/null",
            directory.display()
        );
        let refused = Command::new("sh").args(["-c", &script]).status();
        let allowed = Command::new("sh").args(["-c", &script.replace("&& : > /dev/kmsg", "")]).status();
        fs::remove_dir(&directory).unwrap();
        result.unwrap();
        assert!(!refused.unwrap().success());
        assert!(allowed.unwrap().success());
    }
}
