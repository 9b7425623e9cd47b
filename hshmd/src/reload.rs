//! Reading the configuration again, and what the daemon makes of it while it runs.

use std::sync::{Arc, PoisonError};

use sd_notify::NotifyState;
use tracing::{error, info, warn};

use crate::access::Rules;
use crate::config::Config;
use crate::daemon::{Shared, fit_descriptors};
use crate::error::DaemonError;

/// Reads the configuration again. If it has an error all stays as it is.
pub(crate) async fn reload(shared: Arc<Shared>) {
    let _one_at_a_time = shared.reloading.lock().await;
    let manager = shared.registry.manager.clone();
    match NotifyState::monotonic_usec_now() {
        Ok(now) => manager.notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot tell the service manager of the reload"),
    }
    // Files, and names of users and groups that may be a network away.
    let read = Arc::clone(&shared);
    let result = tokio::task::spawn_blocking(move || read_again(&read)).await;
    match result {
        Ok(Ok(())) => info!("read the configuration again"),
        Ok(Err(error)) => error!(%error, "the configuration stays as it was"),
        Err(error) => error!(%error, "reading the configuration failed inside the daemon"),
    }
    manager.notify(&[NotifyState::Ready]);
}

fn read_again(shared: &Shared) -> Result<(), DaemonError> {
    let Some(config) = shared.as_read.load_again() else { return Ok(()) };
    let config = config?;
    let rules = Rules::find(&config.access)?;
    crate::logging::set_level(&config.log.level)?;
    *shared.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    let Config { mut limits, ref segments, .. } = config;
    fit_descriptors(&mut limits);
    shared.registry.set_limits(limits);
    for setting in config.fixed_changes(&shared.as_read) {
        warn!(setting, "takes effect when the daemon is started anew");
    }
    shared.registry.create_declared(segments);
    Ok(())
}
