//! Devices by NVIDIA's management library, which is loaded at run time: a machine without it has no devices, and that is no
//! fault.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use berth_types::{ByteSize, Real, Usage};
use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use tracing::{debug, info};

/// The GPUs of this machine.
pub struct Gpus {
    library: Nvml,
    /// So many devices were seen at one time.
    most: AtomicU32,
}

/// Of a device that was there and is no more.
const GONE: Usage = Usage { used: ByteSize::ZERO, limit: ByteSize::ZERO };

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
                let gpus = Gpus { library, most: AtomicU32::new(0) };
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

    /// What is known of each GPU; one that was there and is no more has no memory. What the server, which is these processes, holds there is known where the driver tells it
    /// by process, with numbers that count here.
    #[must_use]
    pub fn read(&self, server: &HashSet<u32>) -> BTreeMap<u16, Real> {
        let most = self.most.fetch_max(self.devices(), Ordering::Relaxed).max(self.devices());
        let each = (0..most).filter_map(|index| {
            let memory = self.library.device_by_index(index).and_then(|device| device.memory_info().map(|memory| (device, memory)));
            let (device, memory) = match memory {
                Ok(known) => known,
                // It has fallen off the bus, or was taken away. Of other faults nothing follows.
                Err(NvmlError::GpuLost | NvmlError::InvalidArg | NvmlError::NotFound) => {
                    return Some((u16::try_from(index).ok()?, Real { usage: Some(GONE), ..Real::default() }));
                }
                Err(_) => return None,
            };
            // What the driver keeps for itself can be had by nobody.
            let usage = Usage { used: ByteSize(memory.total.saturating_sub(memory.free)), limit: ByteSize(memory.total) };
            let processes = device.running_compute_processes().unwrap_or_default();
            let told = processes.iter().filter(|process| server.contains(&process.pid)).filter_map(|process| match process.used_gpu_memory {
                UsedGpuMemory::Used(bytes) => Some(ByteSize(bytes)),
                UsedGpuMemory::Unavailable => None,
            });
            let held = told.reduce(|sum, bytes| sum + bytes);
            // Numbers that do not count here are nobody's.
            let own = processes.iter().filter(|process| server.contains(&process.pid)).count();
            let others = own > 0 && own < processes.len();
            Some((u16::try_from(index).ok()?, Real { held, usage: Some(usage), others }))
        });
        each.collect()
    }

    /// Bytes of each GPU.
    #[must_use]
    pub fn totals(&self) -> BTreeMap<u16, ByteSize> {
        let known = self.read(&HashSet::new());
        known.into_iter().filter_map(|(index, real)| Some((index, real.usage?.limit))).filter(|(_, limit)| *limit > ByteSize::ZERO).collect()
    }

    /// Which GPU has this UUID.
    pub(crate) fn index_of(&self, uuid: &str) -> Option<u16> {
        self.library.device_by_uuid(uuid).and_then(|device| device.index()).ok().and_then(|index| u16::try_from(index).ok())
    }
}
