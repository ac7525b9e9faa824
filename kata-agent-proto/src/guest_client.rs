//! The host's side of what this project adds to Kata's API. An agent without it answers
//! [`CallError::Unimplemented`].

use ttrpc::context::Context;

use crate::kata::{CopyRequest, KernelLogRequest, ReceiptRequest, ReceiptResponse};
use crate::{CallError, Client};

impl Client {
    /// What a process used, as soon as it has ended and its output is delivered: as
    /// [`wait_process`](Client::wait_process), and without a deadline too.
    ///
    /// # Errors
    /// [`CallError::NotFound`] when there is no such container or process (any more).
    pub async fn receipt(&self, request: ReceiptRequest) -> Result<ReceiptResponse, CallError> {
        let patient = self.patient();
        patient
            .answer(patient.guest.receipt(Context::default(), &request))
            .await
    }

    /// Makes what comes on a stream ([`files`](crate::files)) in a container; answers at its end. Without a deadline.
    ///
    /// # Errors
    /// [`CallError::Failed`] with a kind that tells of a path, of a container that is not running, or of the stream.
    pub async fn copy_in(&self, request: CopyRequest) -> Result<(), CallError> {
        let patient = self.patient();
        patient
            .answer(patient.guest.copy_in(Context::default(), &request))
            .await?;
        Ok(())
    }

    /// Sends files of a container on a stream ([`files`](crate::files)); answers at its end. Without a deadline.
    ///
    /// # Errors
    /// As [`copy_in`](Client::copy_in).
    pub async fn copy_out(&self, request: CopyRequest) -> Result<(), CallError> {
        let patient = self.patient();
        patient
            .answer(patient.guest.copy_out(Context::default(), &request))
            .await?;
        Ok(())
    }

    /// Begins to send the kernel's log on a stream, from the boot on: records as `/dev/kmsg` has them. It goes on until
    /// the stream is closed.
    ///
    /// # Errors
    /// [`CallError::Failed`], unsupported, where the agent's kernel is not the guest's own.
    pub async fn kernel_log(&self, request: KernelLogRequest) -> Result<(), CallError> {
        self.answer(self.guest.kernel_log(self.context(), &request))
            .await?;
        Ok(())
    }
}
