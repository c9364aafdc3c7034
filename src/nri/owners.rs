//! Which plugin set what of a container. Two that set the same thing are in conflict, unless the later one has cleared it
//! first.

use crate::proto::nri::v1alpha1::{Field, FieldOwners, OwningPlugins};

use super::removal::{marked, unmarked};

/// Who owns what, by container id. The message itself is the record: validators get to see it.
#[derive(Clone, Debug, Default)]
pub(super) struct Owners(OwningPlugins);

/// Two plugins set the same thing.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{other} has set {field}{entry} already")]
pub(super) struct Conflict {
    other: String,
    field: &'static str,
    entry: String,
}

impl Owners {
    pub(super) fn message(&self) -> OwningPlugins {
        self.0.clone()
    }

    /// Takes a field that has one value.
    pub(super) fn claim(&mut self, id: &str, field: Field, plugin: &str) -> Result<(), Conflict> {
        let simple = &mut self.fields(id).simple;
        if let Some(other) = simple.get(&field.into()) {
            allowed(other, plugin, field, "")?;
        }
        simple.insert(field.into(), plugin.to_owned());
        Ok(())
    }

    /// Takes an entry of a field that has many.
    pub(super) fn claim_entry(
        &mut self,
        id: &str,
        field: Field,
        entry: &str,
        plugin: &str,
    ) -> Result<(), Conflict> {
        let owners = &mut self.fields(id).compound.entry(field.into()).or_default().owners;
        if let Some(other) = owners.get(entry) {
            allowed(other, plugin, field, entry)?;
        }
        owners.insert(entry.to_owned(), plugin.to_owned());
        Ok(())
    }

    /// Adds to a field to which all may add.
    pub(super) fn share(&mut self, id: &str, field: Field, plugin: &str) {
        let owner = self.fields(id).simple.entry(field.into()).or_default();
        if !owner.is_empty() {
            owner.push(',');
        }
        owner.push_str(plugin);
    }

    /// `plugin` has taken a value away, and may set another.
    pub(super) fn clear(&mut self, id: &str, field: Field, plugin: &str) {
        self.fields(id).simple.insert(field.into(), marked(plugin));
    }

    /// The same for an entry.
    pub(super) fn clear_entry(&mut self, id: &str, field: Field, entry: &str, plugin: &str) {
        let owners = &mut self.fields(id).compound.entry(field.into()).or_default().owners;
        owners.insert(entry.to_owned(), marked(plugin));
    }

    fn fields(&mut self, id: &str) -> &mut FieldOwners {
        self.0.owners.entry(id.to_owned()).or_default()
    }
}

fn allowed(other: &str, plugin: &str, field: Field, entry: &str) -> Result<(), Conflict> {
    let other = match unmarked(other) {
        Some(clearer) if clearer == plugin => return Ok(()),
        Some(clearer) => clearer,
        None => other,
    };
    let entry = if entry.is_empty() { String::new() } else { format!(" {entry}") };
    Err(Conflict { other: other.to_owned(), field: field.as_str_name(), entry })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_first_owns() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Args, "a").unwrap();
        let conflict = owners.claim("c", Field::Args, "b").unwrap_err();
        assert_eq!(conflict.to_string(), "a has set Args already");
        // Another container's, another field.
        owners.claim("d", Field::Args, "b").unwrap();
        owners.claim("c", Field::CgroupsPath, "b").unwrap();
        owners.claim_entry("c", Field::Env, "X", "a").unwrap();
        owners.claim_entry("c", Field::Env, "Y", "b").unwrap();
        let conflict = owners.claim_entry("c", Field::Env, "X", "b").unwrap_err();
        assert_eq!(conflict.to_string(), "a has set Env X already");
    }

    #[test]
    fn who_clears_may_set() {
        let mut owners = Owners::default();
        owners.claim("c", Field::Args, "a").unwrap();
        owners.clear("c", Field::Args, "b");
        assert!(owners.claim("c", Field::Args, "d").is_err());
        owners.claim("c", Field::Args, "b").unwrap();
        owners.claim_entry("c", Field::Mounts, "/x", "a").unwrap();
        owners.clear_entry("c", Field::Mounts, "/x", "b");
        owners.claim_entry("c", Field::Mounts, "/x", "b").unwrap();
    }

    #[test]
    fn some_things_are_shared() {
        let mut owners = Owners::default();
        owners.share("c", Field::OciHooks, "a");
        owners.share("c", Field::OciHooks, "b");
        let message = owners.message();
        assert_eq!(message.owners["c"].simple[&Field::OciHooks.into()], "a,b");
    }
}
