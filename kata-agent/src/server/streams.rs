//! Standard streams and terminals.

use kata_agent_proto::agent::{
    CloseStdinRequest, ReadStreamRequest, ReadStreamResponse, TtyWinResizeRequest, WriteStreamRequest,
    WriteStreamResponse,
};
use protobuf::well_known_types::empty::Empty;
use ttrpc::Code;

use super::Server;
use super::request::window;
use crate::calls::Which;
use crate::sandbox::Error;

/// The end of a stream is an error of this text, as Kata's agent has it.
const END_OF_STREAM: &str = "read meet eof";

impl Server {
    pub(super) async fn write_stdin(
        &self,
        request: WriteStreamRequest,
    ) -> ttrpc::Result<WriteStreamResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        if request.data.is_empty() {
            // The end, as Kata's runtime says it.
            process.close_stdin();
        } else {
            let calls = process.calls().map_err(Error::from)?;
            calls.write(&request.data).await.map_err(Error::from)?;
        }
        Ok(WriteStreamResponse {
            len: u32::try_from(request.data.len()).unwrap_or(u32::MAX),
            ..Default::default()
        })
    }

    pub(super) async fn read_stdout(&self, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.read_stream(request, Which::Stdout).await
    }

    pub(super) async fn read_stderr(&self, request: ReadStreamRequest) -> ttrpc::Result<ReadStreamResponse> {
        self.read_stream(request, Which::Stderr).await
    }

    async fn read_stream(
        &self,
        request: ReadStreamRequest,
        which: Which,
    ) -> ttrpc::Result<ReadStreamResponse> {
        let process = self.process(&request.container_id, &request.exec_id)?;
        let calls = process.calls().map_err(Error::from)?;
        // A terminal is one stream, whatever it is called.
        let which = if process.has_terminal() {
            Which::Stdout
        } else {
            which
        };
        let most = usize::try_from(request.len).unwrap_or(usize::MAX);
        let data = if most == 0 {
            Vec::new()
        } else {
            calls.read(which, most).await
        };
        if data.is_empty() {
            let end = ttrpc::get_status(Code::INTERNAL, END_OF_STREAM);
            return Err(ttrpc::Error::RpcStatus(end));
        }
        Ok(ReadStreamResponse {
            data,
            ..Default::default()
        })
    }

    pub(super) async fn close_stdin(&self, request: CloseStdinRequest) -> ttrpc::Result<Empty> {
        self.process(&request.container_id, &request.exec_id)?
            .close_stdin();
        Ok(Empty::new())
    }

    pub(super) async fn tty_win_resize(&self, request: TtyWinResizeRequest) -> ttrpc::Result<Empty> {
        let size = window(request.row, request.column)?;
        self.process(&request.container_id, &request.exec_id)?
            .resize(size)?;
        Ok(Empty::new())
    }
}
