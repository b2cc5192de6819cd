//! What was measured, on disk: an entry a problem, named by all that its times depend on.

use egret_compiler::Schedule;
use egret_compiler::tune::Problem;
use egret_ir::Bindings;
use egret_program::{DeviceDescription, fingerprint};
use egret_runtime::Cache;
use serde::{Deserialize, Serialize};

use super::{Measurement, Tuned};

/// Of the entries' form; entries of another are not found.
const FORMAT: &[u8] = b"tuning 1";

/// The entries for a device and an environment.
pub(super) struct Table<'c> {
    cache: &'c Cache,
    device: String,
    /// What the times of every problem depend on.
    own: u128,
}

/// An entry.
#[derive(Serialize, Deserialize)]
struct Record {
    /// The schedules that were to be measured; some make the same kernel as one before them.
    asked: Vec<Schedule>,
    /// All measurements.
    measurements: Vec<Measurement>,
    chosen: usize,
    least_us: f64,
    at_roofline: bool,
}

impl<'c> Table<'c> {
    /// Entries of a cache.
    pub(super) fn new(
        cache: &'c Cache,
        description: &DeviceDescription,
        environment: &str,
        sizes: &Bindings,
    ) -> Table<'c> {
        let description_text = format!("{description:?}");
        let sizes: Vec<String> = sizes.iter().map(|(name, size)| format!("{name}={size}")).collect();
        let parts = [FORMAT, description_text.as_bytes(), environment.as_bytes(), sizes.join(" ").as_bytes()]
            .map(<[u8]>::to_vec);
        let own = fingerprint(&parts.each_ref().map(Vec::as_slice));
        Table { cache, device: format!("{}, {environment}", description.name), own }
    }

    fn key(&self, problem: egret_compiler::ProblemKey) -> u128 {
        fingerprint(&[&self.own.to_le_bytes(), &problem.0.to_le_bytes()])
    }

    /// What was measured of a problem, if that is all that is asked for now.
    pub(super) fn get(&self, problem: &Problem) -> Option<Tuned> {
        let bytes = self.cache.get(self.key(problem.key))?;
        let record: Record = match serde_json::from_slice(&bytes) {
            Ok(record) => record,
            Err(error) => {
                tracing::warn!(problem = %problem.key, %error, "an entry of the tuning table is left out: it cannot be read");
                return None;
            }
        };
        let Record { asked, measurements, chosen, least_us, at_roofline } = record;
        let fits = asked.first() == problem.schedules.first()
            && problem.schedules.iter().all(|schedule| asked.contains(schedule))
            && measurements.get(chosen).is_some_and(|m| m.outcome.median().is_some());
        if !fits {
            return None;
        }
        Some(Tuned {
            key: problem.key,
            family: problem.family.clone(),
            origin: problem.origin.clone(),
            uses: problem.uses,
            least_us,
            at_roofline,
            from_table: true,
            measurements,
            chosen,
        })
    }

    /// Keeps what was measured of a problem, of which `asked` was to be measured.
    pub(super) fn put(&self, tuned: &Tuned, asked: &[Schedule]) {
        let record = Record {
            asked: asked.to_vec(),
            measurements: tuned.measurements.clone(),
            chosen: tuned.chosen,
            least_us: tuned.least_us,
            at_roofline: tuned.at_roofline,
        };
        // plain numbers and names
        let Ok(bytes) = serde_json::to_vec(&record) else { return };
        let (own, best) = tuned.times().unwrap_or_default();
        let schedule = tuned.measurements.get(tuned.chosen).map(|m| m.schedule.to_string()).unwrap_or_default();
        let about = format!(
            "{} of {}: {schedule}, {best:.1} µs ({own:.1} by the model), {} measured on {}",
            tuned.family,
            tuned.origin,
            tuned.measurements.len(),
            self.device
        );
        self.cache.put([(self.key(tuned.key), about, bytes.as_slice())]);
    }
}
