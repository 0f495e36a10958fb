//! Names that people give and ids that the system makes.
//!
//! All of them are short, lower-case and free of path characters, so that one can be a directory
//! name, a host name, a metric label or a part of a message without being quoted or escaped.

use serde::{Deserialize, Serialize};

/// Why a text is no name: what was wrong, in words a user can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(&'static str);

/// Checks `[a-z0-9]([a-z0-9-]*[a-z0-9])?` of at most `max` characters.
fn check(text: &str, max: usize) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName("it is empty"));
    }
    if text.len() > max {
        return Err(InvalidName("it is too long"));
    }
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !text.chars().all(|c| plain(c) || c == '-') {
        return Err(InvalidName("only a-z, 0-9 and '-' are allowed"));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(InvalidName("it must not begin or end with '-'"));
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks the text and makes the name.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                check(text, $max)?;
                Ok(Self(text.into()))
            }

            /// The name as it is written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// An app as its provider calls it; unique on an edgepoint. At most 40 characters.
    AppName,
    40
);
name!(
    /// Who owns apps and pays for what they use. At most 40 characters.
    ProviderName,
    40
);
name!(
    /// One immutable version of an app: the first 16 hex digits of the digest of its content.
    ReleaseId,
    64
);
name!(
    /// One stored image of an instance.
    AppshotId,
    80
);

impl AppshotId {
    /// The golden appshot of a release.
    pub fn golden(release: &ReleaseId) -> Self {
        // Names joined by '-' are a name.
        Self(format!("golden-{release}").into())
    }

    /// The parked appshot of an instance.
    pub fn parked(instance: InstanceId) -> Self {
        Self(format!("parked-{instance}").into())
    }
}

/// One running copy of a release, from its start or restore to its end. Never used twice, so that
/// nothing that belonged to one restore (a pooled connection, a lease) can reach the next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(u64);

impl InstanceId {
    /// The id with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, for keys that must be numbers (connection pools, epoll).
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl std::fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "InstanceId({self})")
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl std::str::FromStr for InstanceId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| InvalidName("an instance id is a hexadecimal number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_directory_host_and_label() {
        for good in ["a", "shop-1", "0x"] {
            assert_eq!(AppName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", "A", "a/b", "..", "a.b", "a b", "ä", &"x".repeat(41)] {
            assert!(AppName::new(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_instance_id_survives_being_written() {
        let id = InstanceId::new(0xdead_beef_0001);
        assert_eq!(id.to_string().parse::<InstanceId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"deadbeef0001\"");
    }
}
