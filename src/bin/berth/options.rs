//! Option values that have a syntax of their own. Every reader says what it got, and what it would understand.

pub(crate) mod duration;
pub(crate) mod env;
pub(crate) mod filter;
pub(crate) mod isolation;
pub(crate) mod limits;
pub(crate) mod listing;
pub(crate) mod name;
pub(crate) mod network;
pub(crate) mod port;
pub(crate) mod quantity;
pub(crate) mod signal;
pub(crate) mod user;
pub(crate) mod volume;
