//! How endpoints are asked.

use super::*;

#[tokio::test]
async fn an_endpoint_may_be_checked_elsewhere_as_another_or_not_at_all() {
    let (endpoint, checker, (nobody, _held)) = (Endpoint::start().await, checker(), nobody());
    let with = |check: EndpointCheck| HostConfig {
        check: Some(Arc::new(check)),
        ..HostConfig::new(Address::Ip(nobody))
    };
    let port = EndpointCheck { port: Some(endpoint.address.port()), ..EndpointCheck::default() };
    let elsewhere = EndpointCheck {
        address: Some(Address::Ip(endpoint.address)),
        host: Some("c".into()),
        ..EndpointCheck::default()
    };
    let disabled = EndpointCheck { disabled: true, ..EndpointCheck::default() };
    // The check's own host and port count less.
    let mut probe = http();
    probe.host = "other".to_owned();
    let other = HealthCheck { port: Some(1), ..every_day(Probe::Http(Box::new(probe))) };
    for (own, check) in [
        (port, HealthCheck { port: Some(1), ..every_day(Probe::Http(Box::new(http()))) }),
        (elsewhere, other),
        (disabled, every_day(Probe::Http(Box::new(http())))),
    ] {
        let mut config = ClusterConfig::named("c");
        config.health_check = Some(Arc::new(HealthCheck { unhealthy_threshold: 1, ..check }));
        let cluster = Cluster::new(config, vec![with(own.clone())], None, &Registry::new()).unwrap();
        assert_eq!(healthy(&cluster), usize::from(own.disabled));
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), 1, "{own:?}");
        // What is said of it may change while it is there.
        cluster.update_hosts(vec![HostConfig::new(Address::Ip(nobody))]);
        until("checked at its own port", || healthy(&cluster) == 0).await;
        let disabled = EndpointCheck { disabled: true, ..EndpointCheck::default() };
        cluster.update_hosts(vec![with(disabled)]);
        until("not checked", || healthy(&cluster) == 1).await;
    }
    assert_eq!(endpoint.asked(), 2);
}

#[tokio::test]
async fn tcp_checks_connect_and_may_ask() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 4];
            if socket.read_exact(&mut buffer).await.is_ok() && &buffer == b"PING" {
                socket.write_all(b"+PO").await.unwrap();
                socket.write_all(b"NG\r\n").await.unwrap();
            }
        }
    });
    let checker = checker();
    for (send, receive, well) in [("", "", 1), ("PING", "PONG", 1), ("PONG", "PONG", 0)] {
        let receive = Some(receive.as_bytes().to_vec()).filter(|piece| !piece.is_empty());
        let probe = TcpProbe { send: send.into(), receive: receive.into_iter().collect() };
        let cluster = cluster(&[address], Some(every_day(Probe::Tcp(probe))), None);
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), well, "{send}");
    }
    let (nobody, _held) = nobody();
    let cluster = cluster(&[nobody], Some(every_day(Probe::Tcp(TcpProbe::default()))), None);
    checks_of(&checker, &cluster).all_checked().await;
    assert_eq!(healthy(&cluster), 0);
}

/// A gRPC health service that answers with this status.
async fn grpc_service(status: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut server = h2::server::handshake(socket).await.unwrap();
            while let Some(Ok((mut request, mut respond))) = server.accept().await {
                tokio::spawn(async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let message = request.body_mut().data().await.unwrap().unwrap();
                    assert_eq!(&message[..], b"\0\0\0\0\x05\x0A\x03svc");
                    let mut answer = BytesMut::new();
                    answer.put_slice(&[0, 0, 0, 0, 2, 8, status]);
                    let response = http::Response::builder().header("content-type", "application/grpc");
                    let mut out = respond.send_response(response.body(()).unwrap(), false).unwrap();
                    out.send_data(Bytes::from(answer), false).unwrap();
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    out.send_trailers(trailers).unwrap();
                });
            }
        }
    });
    address
}

#[tokio::test]
async fn grpc_checks_ask_for_a_service() {
    let checker = checker();
    for (status, well) in [(1, 1), (2, 0)] {
        let address = grpc_service(status).await;
        let probe = GrpcProbe { service: "svc".to_owned(), authority: String::new(), metadata: Vec::new() };
        let cluster = cluster(&[address], Some(every_day(Probe::Grpc(probe))), None);
        checks_of(&checker, &cluster).all_checked().await;
        assert_eq!(healthy(&cluster), well, "{status}");
    }
}
