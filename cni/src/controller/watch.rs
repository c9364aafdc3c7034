//! Notices that somebody takes our rules away, such as `nft flush ruleset` or a firewall's reload.

use std::{io, thread};

use tokio::sync::watch;

use super::Controller;
use crate::{
    error::{Error, Result},
    netlink::Socket,
    nft,
};

impl Controller {
    /// A value that changes whenever part of our table was taken away, by whomever: time to reconcile. Ends with its receivers.
    ///
    /// # Errors
    /// The kernel gives no events.
    pub fn watch_rules(&self) -> Result<watch::Receiver<()>> {
        let mut socket =
            Socket::nftables_events().map_err(Error::kernel("listening to changes of the ruleset"))?;
        let table = self.inner.firewall.table().to_owned();
        let (sender, receiver) = watch::channel(());
        let listen = move || {
            while !sender.is_closed() {
                let mut taken = false;
                let heard = socket.listen(|kind, payload| taken |= nft::takes_away(kind, payload, &table));
                match heard {
                    Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                    // More happened than the socket holds: ours may be among it.
                    Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => taken = true,
                    Err(error) => {
                        tracing::warn!(%error, "no longer listening to changes of the ruleset");
                        return;
                    }
                    Ok(()) => {}
                }
                if taken {
                    sender.send_replace(());
                }
            }
        };
        thread::Builder::new()
            .name("berth-net-watch".to_owned())
            .stack_size(128 * 1024)
            .spawn(listen)
            .map_err(Error::kernel("starting the watcher of the ruleset"))?;
        Ok(receiver)
    }
}
