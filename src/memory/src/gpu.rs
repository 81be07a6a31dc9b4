//! Devices by NVIDIA's management library, which is loaded at run time: a machine without it has no devices, and that is no
//! fault.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;

use berth_types::{ByteSize, Real, Usage};
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use tracing::{debug, info};

/// The GPUs of this machine.
pub struct Gpus {
    library: Nvml,
}

impl Gpus {
    /// Loads the library: the one at `path`, else the system's. `None` where there is none, or no driver behind it.
    #[must_use]
    pub fn open(path: Option<&Path>) -> Option<Gpus> {
        let opened = match path {
            None => Nvml::init(),
            Some(path) => Nvml::builder().lib_path(OsStr::new(path)).init(),
        };
        match opened {
            Ok(library) => {
                let gpus = Gpus { library };
                info!(gpus = gpus.devices(), "memory of GPUs is read from NVIDIA's management library");
                Some(gpus)
            }
            Err(NvmlError::LibloadingError(why)) => {
                debug!(error = %why, "there is no library for NVIDIA's GPUs here");
                None
            }
            Err(why) => {
                info!(error = %why, "NVIDIA's management library is here and cannot be used: nothing is known of GPUs");
                None
            }
        }
    }

    fn devices(&self) -> u32 {
        self.library.device_count().unwrap_or(0)
    }

    /// What is known of each GPU. What the server, which is these processes, holds there is known where the driver tells it
    /// by process, with numbers that count here.
    #[must_use]
    pub fn read(&self, server: &HashSet<u32>) -> BTreeMap<u16, Real> {
        let each = (0..self.devices()).filter_map(|index| {
            let device = self.library.device_by_index(index).ok()?;
            let memory = device.memory_info().ok()?;
            // What the driver keeps for itself can be had by nobody.
            let usage = Usage { used: ByteSize(memory.total.saturating_sub(memory.free)), limit: ByteSize(memory.total) };
            let processes = device.running_compute_processes().unwrap_or_default();
            let told = processes.iter().filter(|process| server.contains(&process.pid)).filter_map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(ByteSize(bytes)),
                UsedGpuMemory::Unavailable => None,
            });
            let held = told.reduce(|sum, bytes| sum + bytes);
            Some((u16::try_from(index).ok()?, Real { held, usage: Some(usage) }))
        });
        each.collect()
    }

    /// Bytes of each GPU.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<u16, ByteSize> {
        let known = self.read(&HashSet::new());
        known.into_iter().filter_map(|(index, real)| Some((index, real.usage?.limit))).collect()
    }

    /// Which GPU has this UUID.
    pub(crate) fn index_of(&self, uuid: &str) -> Option<u16> {
        self.library.device_by_uuid(uuid).and_then(|device| device.index()).ok().and_then(|index| u16::try_from(index).ok())
    }
}
