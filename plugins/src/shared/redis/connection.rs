//! One worker's connection to one server.

use super::bounded::Bounded;
use super::settings::{Address, Login};
use super::{Redis, RedisFault};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, Value};
use sixfold_core::plugin::ConnectRequest;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

/// Where a connection is kept. Whoever needs one that is being opened waits for it.
#[derive(Default)]
pub(super) struct Place(Mutex<State>);

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    /// Connections so far.
    opened: u64,
}

struct Kept {
    connection: MultiplexedConnection,
    used: Instant,
}

/// A connection to send over.
pub(super) struct Open {
    connection: MultiplexedConnection,
    number: u64,
    /// Whether it was there already, and so may have been closed by the server.
    pub(super) was_there: bool,
}

impl Place {
    /// The connection, opened if there is none.
    pub(super) async fn open(
        self: &Arc<Place>,
        redis: &Redis,
        address: &Address,
        login: &Login,
    ) -> Result<Open, RedisFault> {
        // Where connecting fails nobody waits for all who have tried before.
        let turn = timeout(redis.settings.connect_timeout, self.0.lock()).await;
        let mut state = turn.map_err(|_| RedisFault::Timeout)?;
        let number = state.opened;
        if let Some(kept) = &mut state.kept {
            kept.used = Instant::now();
            return Ok(Open { connection: kept.connection.clone(), number, was_there: true });
        }
        let connection = connect(redis, address, login).await?;
        state.opened += 1;
        state.kept = Some(Kept { connection: connection.clone(), used: Instant::now() });
        tokio::spawn(close_idle(Arc::downgrade(self), state.opened, redis.settings.idle));
        Ok(Open { connection, number: state.opened, was_there: false })
    }

    /// Lets go of a connection that is of no more use.
    pub(super) async fn forget(&self, open: &Open) {
        let mut state = self.0.lock().await;
        if state.opened == open.number {
            state.kept = None;
        }
    }
}

impl Open {
    /// Sends a command and waits for its answer. Whoever does not wait for it any more leaves the connection to the others.
    pub(super) async fn send(
        &self,
        command: &Cmd,
        asking: bool,
        within: Duration,
    ) -> Result<Value, RedisFault> {
        let mut connection = self.connection.clone();
        let exchange = async {
            if !asking {
                return command.query_async(&mut connection).await;
            }
            let mut both = redis::pipe();
            both.cmd("ASKING").ignore().add_command(command.clone());
            let (answer,) = both.query_async::<(Value,)>(&mut connection).await?;
            Ok(answer)
        };
        Ok(timeout(within, exchange).await.map_err(|_| RedisFault::Timeout)??)
    }
}

async fn connect(
    redis: &Redis,
    address: &Address,
    login: &Login,
) -> Result<MultiplexedConnection, RedisFault> {
    let settings = &redis.settings;
    let request = ConnectRequest {
        host: &address.host,
        port: address.port,
        tls: settings.tls,
        timeout: settings.connect_timeout,
    };
    let wire = Bounded::new(redis.callout.connect(request).await?);
    // Times are watched here.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let login = login.info();
    let setup = MultiplexedConnection::new_with_config(&login, wire, config);
    let (connection, driver) =
        timeout(settings.read_timeout, setup).await.map_err(|_| RedisFault::Timeout)??;
    tokio::spawn(driver);
    Ok(connection)
}

/// Closes a connection over which nothing was sent for so long (`redis_keepalive_timeout`).
async fn close_idle(place: Weak<Place>, number: u64, idle: Duration) {
    let mut left = idle;
    loop {
        sleep(left).await;
        let Some(place) = place.upgrade() else { return };
        let mut state = place.0.lock().await;
        let Some(kept) = state.kept.as_ref().filter(|_| state.opened == number) else { return };
        match idle.checked_sub(kept.used.elapsed()).filter(|left| !left.is_zero()) {
            Some(more) => left = more,
            None => {
                state.kept = None;
                return;
            }
        }
    }
}
