//! What the running agent says of itself.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// For each step of the conversation.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const ANSWER: u64 = 16 * 1024;

/// Asks for `/readyz` where the agent serves it: the status and the text.
pub fn ask(listen: SocketAddr) -> io::Result<(u16, String)> {
    let mut addr = listen;
    if listen.ip().is_unspecified() {
        addr.set_ip(if listen.is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        });
    }
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| io::Error::other("the answer is not HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let mut words = head.lines().next()?.split(' ');
    let http = words.next()?.starts_with("HTTP/1.");
    Some((words.next().filter(|_| http)?.parse().ok()?, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use secureoverlay_daemon::{health::Health, http};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_agents_own_server_is_understood() {
        let health = Health::default();
        let task = health.task("ring");
        let bound = http::bind(([0, 0, 0, 0], 0).into(), health, Registry::default()).await.unwrap();
        let addr = bound.addr;
        let server = tokio::spawn(bound.serve());
        let asked = || tokio::task::spawn_blocking(move || ask(addr).unwrap());
        let (status, text) = asked().await.unwrap();
        assert!(status == 503 && text.contains("ring: not ready"), "{text}");
        task.ready();
        assert_eq!(asked().await.unwrap().0, 200);
        server.abort();
    }

    #[test]
    fn other_answers_are_no_word() {
        for answer in ["", "HTTP/1.1 200 OK", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 fine\r\n\r\n", "200\r\n\r\n"] {
            assert_eq!(parse(answer), None, "{answer}");
        }
        assert_eq!(parse("HTTP/1.1 200 OK\r\na: b\r\n\r\nwell"), Some((200, "well".into())));
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(ask(closed).is_err());
    }
}
