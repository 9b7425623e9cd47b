use std::time::Duration;

use anyhow::Result;
use hshm_client::{Client, DriverStatus, StatusInfo};
use hshmd::size::format_size;
use serde::Serialize;

use crate::table::sheet;
use crate::text;
use crate::ui::Ui;

#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    status: &'a StatusInfo,
    drivers: &'a [DriverStatus],
}

pub(super) fn run(client: &Client, ui: &mut Ui) -> Result<()> {
    let status = client.status()?;
    let drivers = client.drivers()?;
    ui.show(&Status { status: &status, drivers: &drivers }, |ui| {
        ui.heading(&format!("hshmd {} is running", status.server_version))?;
        let protocol = if status.protocol_min == status.protocol_max {
            status.protocol_max.to_string()
        } else {
            format!("{} to {}", status.protocol_min, status.protocol_max)
        };
        let mut segments = format!(
            "{}, {} in all",
            text::counted(status.segments, "segment"),
            format_size(status.committed_bytes)
        );
        if status.unusable_segments > 0 {
            segments.push_str(&format!(", {} unusable", text::count(status.unusable_segments)));
        }
        let mut rows = vec![
            ("process", format!("{}, user {}", status.pid, text::user(status.uid))),
            ("uptime", text::duration(Duration::from_millis(status.uptime_ms))),
            ("socket", status.socket.display().to_string()),
            ("state", status.state_dir.display().to_string()),
            ("protocol", format!("version {protocol}, segment layout {}", status.layout_version)),
            ("holds", segments),
            (
                "clients",
                format!(
                    "{}, {} watched",
                    text::counted(status.connections, "connection"),
                    counted_processes(status.watched_processes)
                ),
            ),
            (
                "recovered",
                format!(
                    "{} that died, {}",
                    counted_processes(status.recovered_processes),
                    text::counted(status.recovered_slots, "worker slot")
                ),
            ),
        ];
        rows.extend(
            drivers.iter().map(|driver| ("devices", text::printable(&one(driver)).into_owned())),
        );
        ui.line(sheet(ui.form(), rows))
    })
}

/// A vendor's driver and its devices, or why there is none.
fn one(found: &DriverStatus) -> String {
    let vendor = found.vendor;
    let Some(driver) = &found.driver else {
        return format!("{vendor}: {}", found.problem.as_deref().unwrap_or("none"));
    };
    let devices = driver.devices.iter().enumerate().map(|(number, device)| {
        let atomics = match device.host_native_atomics {
            Some(true) => ", native host atomics",
            Some(false) | None => "",
        };
        format!("{number} {} with {}{atomics}", device.name, format_size(device.memory_bytes))
    });
    let devices: Vec<_> = devices.collect();
    format!("{vendor} {}: {}", driver.version, devices.join("; "))
}

fn counted_processes(number: u64) -> String {
    format!("{} process{}", text::count(number), if number == 1 { "" } else { "es" })
}
