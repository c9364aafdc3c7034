//! The keys that leave a container and let it run on: Ctrl-P, Ctrl-Q, as people know them from docker.

const CTRL_P: u8 = 0x10;
const CTRL_Q: u8 = 0x11;

/// Looks for the two keys in what is typed. The first is held back until the next one shows what was meant.
#[derive(Debug, Default)]
pub(super) struct Detach {
    held: bool,
}

impl Detach {
    /// What is to be passed on of `typed`, and whether the person leaves.
    pub(super) fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut pass = Vec::with_capacity(typed.len() + 1);
        for key in typed {
            match (std::mem::take(&mut self.held), *key) {
                (true, CTRL_Q) => return (pass, true),
                // Twice the first key is once for the program.
                (true, CTRL_P) => pass.push(CTRL_P),
                (false, CTRL_P) => self.held = true,
                (true, key) => pass.extend([CTRL_P, key]),
                (false, key) => pass.push(key),
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_keys_leave_wherever_reads_part_them() {
        let mut keys = Detach::default();
        assert_eq!(keys.filter(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(keys.filter(b"\x11rest"), (Vec::new(), true));
    }

    #[test]
    fn other_keys_reach_the_program() {
        let mut keys = Detach::default();
        assert_eq!(keys.filter(b"\x10a\x11"), (b"\x10a\x11".to_vec(), false));
        assert_eq!(keys.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.filter(b"\x10"), (Vec::new(), false));
        assert_eq!(keys.filter(b"b"), (b"\x10b".to_vec(), false));
    }
}
