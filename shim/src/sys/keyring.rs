//! `keyctl(2)`, which no crate of ours wraps.

use std::io;

/// Gives this process a session keyring of its own, without a name: nobody joins it later (session-keyring(7)).
pub(crate) fn leave_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    let no_name = std::ptr::null::<libc::c_char>();
    // SAFETY: a null pointer stands for no name; nothing else is passed.
    super::check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, no_name) }).map(|_| ())
}
