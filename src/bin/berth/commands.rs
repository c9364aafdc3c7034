//! The commands, a file each.

pub(crate) mod attach;
pub(crate) mod config;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod export;
pub(crate) mod images;
pub(crate) mod import;
pub(crate) mod info;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod network;
pub(crate) mod pods;
pub(crate) mod ps;
pub(crate) mod pull;
pub(crate) mod rm;
pub(crate) mod rmi;
pub(crate) mod run;
pub(crate) mod stats;
pub(crate) mod stop;
pub(crate) mod version;
