//! A program that only sleeps: an ELF file of one segment, written byte by byte.

use std::io;

const HEADERS: usize = 64 + 56;
const BASE: u64 = 0x40_0000;

/// What `EM_*` calls the processor, and the code: sleep until a signal comes, for ever.
fn machine() -> io::Result<(u16, Vec<u8>)> {
    match std::env::consts::ARCH {
        // mov eax, 34 (pause); syscall; jmp back
        "x86_64" => Ok((62, vec![0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7])),
        // ppoll without descriptors and without a time limit (73); b back
        "aarch64" => {
            let words: [u32; 8] = [
                0xd280_0000, // mov x0, 0
                0xd280_0001, // mov x1, 0
                0xd280_0002, // mov x2, 0
                0xd280_0003, // mov x3, 0
                0xd280_0104, // mov x4, 8
                0xd280_0928, // mov x8, 73
                0xd400_0001, // svc 0
                0x17ff_fff9, // b -28
            ];
            Ok((183, words.iter().flat_map(|word| word.to_le_bytes()).collect()))
        }
        other => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("sandbox containers are not built for {other} (x86_64 and aarch64 are)"),
        )),
    }
}

/// The file's content (System V ABI, "Object Files").
pub(super) fn program() -> io::Result<Vec<u8>> {
    let (machine, code) = machine()?;
    let size = u64::try_from(HEADERS + code.len()).unwrap_or(0);
    let mut file = Vec::new();
    // ELF, 64 bits, little end first, version 1, System V.
    file.extend_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let half = |file: &mut Vec<u8>, numbers: &[u16]| {
        numbers.iter().for_each(|number| file.extend_from_slice(&number.to_le_bytes()));
    };
    let word = |file: &mut Vec<u8>, numbers: &[u32]| {
        numbers.iter().for_each(|number| file.extend_from_slice(&number.to_le_bytes()));
    };
    let long = |file: &mut Vec<u8>, numbers: &[u64]| {
        numbers.iter().for_each(|number| file.extend_from_slice(&number.to_le_bytes()));
    };
    half(&mut file, &[2, machine]); // an executable
    word(&mut file, &[1]);
    long(&mut file, &[BASE + 120, 64, 0]); // entry, program headers, no sections
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 0, 0, 0]);
    word(&mut file, &[1, 5]); // to be loaded, readable and executable
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend_from_slice(&code);
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_sleeps_until_it_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pause");
        std::fs::write(&path, program().unwrap()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert!(child.try_wait().unwrap().is_none());
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        assert!(state.contains("(pause) S "), "{state}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
