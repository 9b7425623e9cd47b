//! What `hshmd --check-config` asks of the machine, beyond reading the files.

use crate::access::Rules;
use crate::config::Config;
use crate::declare;
use crate::error::DaemonError;
use crate::names::find_group;

/// Looks up the users and groups that the settings name, as a start or a reload would.
///
/// # Errors
/// [`DaemonError::Setting`] with the first that there is not.
pub fn names(config: &Config) -> Result<(), DaemonError> {
    Rules::find(&config.access)?;
    if let Some(group) = &config.socket_group {
        find_group("socket_group", group)?;
    }
    config.segments.iter().try_for_each(|declared| declare::owner(declared).map(drop))
}
