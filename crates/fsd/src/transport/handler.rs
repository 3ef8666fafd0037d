//! The vhost-user messages of one connection, applied to the session and the rings.
//!
//! The `vhost` crate parses and answers; this file says what each message means here. It runs on the session
//! thread only. Specification: "Vhost-user Protocol", QEMU's interop documents.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::device::Device;
use super::memory::MAX_MEM_SLOTS;

/// Virtio features offered to the guest, and the bit that says that protocol features exist.
pub(crate) const FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Vhost-user protocol features offered. `REPLY_ACK` is done by the `vhost` crate; `CONFIG` is left out because
/// some QEMU versions crash on a file-system backend that has it.
pub(crate) const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::BACKEND_REQ);

fn invalid(what: &'static str) -> Error {
    Error::ReqHandlerError(std::io::Error::new(std::io::ErrorKind::InvalidInput, what))
}

/// Receives the messages of one connection.
pub(crate) struct Handler {
    device: Arc<Device>,
    /// The channel for requests to the frontend. Nothing is asked of it yet, but closing it would end the VMM's
    /// side of the channel.
    _backend_channel: Option<Backend>,
}

impl Handler {
    pub(crate) fn new(device: Arc<Device>) -> Self {
        Self {
            device,
            _backend_channel: None,
        }
    }

    fn index(&self, index: u32) -> Result<usize> {
        usize::try_from(index)
            .ok()
            .filter(|&i| i < self.device.rings().len())
            .ok_or(Error::InvalidParam)
    }
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        let mut session = self.device.session();
        if session.owned {
            return Err(Error::InvalidOperation("already claimed"));
        }
        session.owned = true;
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.device.reset_session();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("RESET_DEVICE was not negotiated"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(Error::InvalidParam);
        }
        self.device.session().features = features;
        // Without protocol features there is no SET_VRING_ENABLE: rings start enabled.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            for index in 0..self.device.rings().len() {
                self.device.enable_ring(index, true);
            }
        }
        Ok(())
    }

    fn set_mem_table(&mut self, regions: &[VhostUserMemoryRegion], files: Vec<File>) -> Result<()> {
        self.device.change_memory(|memory| memory.replace(regions, files))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let index = self.index(index)?;
        if !self.device.rings()[index].set_size(num) {
            return Err(Error::InvalidParam);
        }
        self.device.session().rings[index].size = num;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let index = self.index(index)?;
        let mut session = self.device.session();
        let outside = || invalid("virtqueue lies outside the memory table");
        let desc = session.memory.to_guest(descriptor).ok_or_else(outside)?;
        let avail = session.memory.to_guest(available).ok_or_else(outside)?;
        let used = session.memory.to_guest(used).ok_or_else(outside)?;
        if !self.device.rings()[index].set_addresses(desc, avail, used) {
            return Err(Error::InvalidParam);
        }
        let record = &mut session.rings[index];
        (record.desc, record.avail, record.used) = (desc.0, avail.0, used.0);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let index = self.index(index)?;
        // A split ring's state is its 16-bit avail index.
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.device.rings()[index].set_base(base);
        self.device.session().rings[index].base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let at = self.index(index)?;
        Ok(VhostUserVringState::new(
            index,
            u32::from(self.device.stop_ring(at)),
        ))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let fd =
            fd.ok_or_else(|| invalid("polling a virtqueue without a kick descriptor is not supported"))?;
        self.device
            .start_ring(index, OwnedFd::from(fd))
            .map_err(|e| Error::ReqHandlerError(e.into()))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = self.index(u32::from(index))?;
        let fd = fd.map(OwnedFd::from);
        if let Some(fd) = &fd {
            // A worker must not block because nobody reads what it writes.
            let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| Error::ReqHandlerError(e.into()))?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
                .map_err(|e| Error::ReqHandlerError(e.into()))?;
        }
        self.device.rings()[index].set_call(fd);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.index(u32::from(index)).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        // Bits that were not offered are ignored, as QEMU's backends do: frontends differ in what they echo.
        self.device.session().protocol_features = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.device.rings().len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let index = self.index(index)?;
        self.device.enable_ring(index, enable);
        Ok(())
    }

    fn get_config(&mut self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("CONFIG was not negotiated"))
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("CONFIG was not negotiated"))
    }

    fn set_backend_req_fd(&mut self, backend: Backend) {
        self._backend_channel = Some(backend);
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is not a GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("SHARED_OBJECT was not negotiated"))
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD was not negotiated"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("INFLIGHT_SHMFD was not negotiated"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_MEM_SLOTS)
    }

    fn add_mem_region(&mut self, region: &VhostUserSingleMemoryRegion, fd: File) -> Result<()> {
        self.device.change_memory(|memory| memory.add(region, fd))
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.device.change_memory(|memory| memory.remove(region))
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("DEVICE_STATE was not negotiated"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("DEVICE_STATE was not negotiated"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("SHMEM was not negotiated"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD was not negotiated"))
    }
}
