//! Standard streams and terminals.

use kata_agent_proto::agent::{CloseStdinRequest, TtyWinResizeRequest};
use protobuf::well_known_types::empty::Empty;

use super::Server;
use super::request::window;

impl Server {
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
