//! The agent's methods for the guest as a whole: its sandbox, clock, entropy and figures; and what is not offered.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod bed;

use api::{MAIN, client, run};
use bed::Bed;
use kata_agent_proto::agent::{
    AddSwapRequest, CreateSandboxRequest, DestroySandboxRequest, GetMetricsRequest, MemAgentCompactConfig,
    MemAgentMemcgConfig, RemoveStaleVirtiofsShareMountsRequest, ReseedRandomDevRequest,
    SetGuestDateTimeRequest, SetPolicyRequest,
};
use kata_agent_proto::{CallError, Client, FailureKind};
use kata_sandbox::Sandbox;

async fn clock_and_entropy(bed: &Bed, client: &Client) {
    let seed = ReseedRandomDevRequest {
        data: vec![7; 64],
        ..Default::default()
    };
    client.reseed_random_dev(seed).await.unwrap();
    let clock = SetGuestDateTimeRequest {
        sec: 4_102_444_800,
        ..Default::default()
    };
    client.set_guest_date_time(clock).await.unwrap();
    let (status, year) = run(client, MAIN, "date", "date -u +%Y").await;
    // Without a guest it is the host's clock, which stays.
    assert_eq!((status, year == "2100\n"), (0, bed.has_guest()), "{year}");
}

async fn figures(client: &Client) {
    let metrics = client
        .get_metrics(GetMetricsRequest::new())
        .await
        .unwrap()
        .metrics;
    for metric in [
        "kata_guest_meminfo{item=\"mem_total\"} ",
        "kata_agent_threads 1\n",
    ] {
        assert!(metrics.contains(metric), "{metric} in {metrics}");
    }
}

async fn not_offered(client: &Client) {
    let answers = [
        client.add_swap(AddSwapRequest::new()).await,
        client.set_policy(SetPolicyRequest::new()).await,
        client.mem_agent_memcg_set(MemAgentMemcgConfig::new()).await,
        client.mem_agent_compact_set(MemAgentCompactConfig::new()).await,
    ];
    for answer in answers {
        assert_eq!(answer, Err(CallError::Unimplemented));
    }
}

on_every_backend! {
    /// Conformance: api RemoveStaleVirtiofsShareMounts
    /// Conformance: api AddSwap
    /// Conformance: api SetPolicy
    /// Conformance: api MemAgentMemcgSet
    /// Conformance: api MemAgentCompactSet
    /// Conformance: api ReseedRandomDev
    /// Conformance: api SetGuestDateTime
    /// Conformance: api GetMetrics
    /// Conformance: api Check
    /// Conformance: api Version
    /// Conformance: api CreateSandbox
    /// Conformance: api DestroySandbox
    async fn the_guest_answers_every_method(bed: Bed) {
        let sandbox = Sandbox::boot(bed.idle()).await.unwrap();
        let client = client(&sandbox).await;
        client.check().await.unwrap();
        assert_eq!(client.version().await.unwrap().grpc_version, "0.0.1");
        clock_and_entropy(&bed, &client).await;
        figures(&client).await;
        let visit = RemoveStaleVirtiofsShareMountsRequest::new();
        client.remove_stale_virtiofs_share_mounts(visit).await.unwrap();
        not_offered(&client).await;
        // The SDK has set the sandbox up.
        let again = client.create_sandbox(CreateSandboxRequest::new()).await.unwrap_err();
        assert_eq!(again.kind(), Some(FailureKind::AlreadyExists));
        client.destroy_sandbox(DestroySandboxRequest::new()).await.unwrap();
        client.closed().await;
        assert_eq!(client.check().await, Err(CallError::Closed));
    }
}
