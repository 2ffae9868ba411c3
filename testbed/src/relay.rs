//! A TCP relay that can be cut: what stands behind it becomes unreachable and nothing else changes.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// What becomes of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// They pass.
    Open,
    /// They are reset, the new ones at once.
    Reset,
    /// They stay open and nothing passes; the open ones are reset.
    Hang,
}

/// See the module documentation. Ends when dropped.
pub struct Relay {
    address: SocketAddr,
    target: Arc<Mutex<Option<SocketAddr>>>,
    passage: watch::Sender<Passage>,
    accepting: AbortHandle,
}

impl Relay {
    /// A relay on a free port that leads nowhere yet.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let target = Arc::new(Mutex::new(None));
        let (passage, watched) = watch::channel(Passage::Open);
        let accepting = tokio::spawn(accept(listener, Arc::clone(&target), watched));
        Ok(Self {
            address,
            target,
            passage,
            accepting: accepting.abort_handle(),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it leads to, to be set once that is known.
    pub fn target(&self) -> Arc<Mutex<Option<SocketAddr>>> {
        Arc::clone(&self.target)
    }

    /// Changes what becomes of connections.
    pub fn set(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    target: Arc<Mutex<Option<SocketAddr>>>,
    passage: watch::Receiver<Passage>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let to = *target.lock();
        tokio::spawn(pass(stream, to, passage.clone()));
    }
}

async fn pass(
    mut client: TcpStream,
    to: Option<SocketAddr>,
    mut passage: watch::Receiver<Passage>,
) {
    let now = *passage.borrow_and_update();
    let through = async {
        match (now, to) {
            (Passage::Open, Some(to)) => {
                if let Ok(mut server) = TcpStream::connect(to).await {
                    // Either side may end it in any way.
                    let _ended = copy_bidirectional(&mut client, &mut server).await;
                    return true;
                }
                false
            }
            (Passage::Hang, _) => std::future::pending().await,
            _ => false,
        }
    };
    let whole = tokio::select! {
        whole = through => whole,
        // A change ends what is open.
        _ = passage.changed() => false,
    };
    if !whole {
        // A connection that is gone already cannot be reset.
        let _gone = SockRef::from(&client).set_linger(Some(Duration::ZERO));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn it_passes_until_it_is_cut() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::start().await.unwrap();
        *relay.target().lock() = Some(server.local_addr().unwrap());
        let mut client = TcpStream::connect(relay.address()).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        client.write_all(b"hi").await.unwrap();
        let mut heard = [0; 2];
        served.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hi");
        relay.set(Passage::Reset);
        assert!(client.read(&mut heard).await.is_err());
        relay.set(Passage::Open);
        let mut again = TcpStream::connect(relay.address()).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        served.write_all(b"ok").await.unwrap();
        again.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ok");
    }
}
