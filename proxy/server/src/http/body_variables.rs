//! Variables of a request's body: it is read for them, and searched, before anybody asks what they are.

use super::downstream::Downstream;
use super::exchange::{Exchange, Interrupt, guard};
use sixfold_core::format::{BodyLimits, BodyVariable, find_in_body};
use sixfold_core::lookup::Wants;
use sixfold_core::plugin::{Overflow, ReadBody};
use sixfold_core::router::RouteTable;
use std::pin::pin;
use std::sync::Arc;

impl<D: Downstream> Exchange<'_, D> {
    /// Looks for the route again with what the first look wanted to know of the request's body, and what the next ones do.
    pub(super) async fn find_route_by_body(
        &mut self,
        mut wants: Box<Wants>,
        table: Option<&RouteTable>,
    ) -> Result<(), Interrupt> {
        loop {
            if let Some(limit) = wants.body {
                self.read_for_variables(limit).await?;
            }
            self.find_in_body(&wants.values).await?;
            self.find_route(table);
            // A value that was looked for is not wanted again.
            match self.wanted.take_if(|wanted| !wanted.values.is_empty()) {
                Some(more) => wants = more,
                None => return Ok(()),
            }
        }
    }

    /// Reads the request's body for these variables and looks for their values in it.
    pub(super) async fn read_variables(&mut self, variables: &[Arc<BodyVariable>]) -> Result<(), Interrupt> {
        self.read_for_variables(BodyLimits::most()).await?;
        self.find_in_body(variables).await
    }

    /// Has values looked for in the request's body, beside the worker where it is long.
    async fn find_in_body(&mut self, variables: &[Arc<BodyVariable>]) -> Result<(), Interrupt> {
        let finding = pin!(find_in_body(variables, self.stream));
        guard(self.down, self.clock, finding).await
    }

    /// Reads as much of the request's body as variables may look at, unless that was done for somebody. That of a call of
    /// gRPC may never end.
    async fn read_for_variables(&mut self, limit: usize) -> Result<(), Interrupt> {
        let stream = &self.stream;
        if stream.request_body.is_some() || stream.read_ahead.is_some() || stream.request.is_grpc() {
            return Ok(());
        }
        let announced = self.announced_length();
        self.read_ahead(ReadBody { limit, on_overflow: Overflow::Pass }, None).await?;
        self.frame_request(announced);
        Ok(())
    }
}
