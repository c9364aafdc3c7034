//! Container Network Model.
