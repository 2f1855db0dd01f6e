"""The service-wide counts: each accepted customer is counted once, and ends once, after any fault of its message."""

import asyncio
import json
import random
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
import redis

from celery_task_app.errors import Deleted, Expired, InvalidPrediction, ResultStoreUnavailable
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect, connect_async
from celery_task_app.store.counts import PREDICTIONS, ROWS, Counts
from celery_task_app.store.predictions import AsyncPredictionStore, Outcome, PredictionStore
from tests.harness.counts import counts, read_counts
from tests.harness.processes import free_port
from tests.harness.servers import Servers

TTL_S = 86_400
LIFETIME_S = 3_600
FAILURE = InvalidPrediction("the output of the model is not a probability")
EXPIRED = Expired("not computed within its deadline")
DELETED = Deleted("deleted by the client")
NONE = counts(0)


@pytest.fixture(autouse=True)
def _empty_store(client: redis.Redis) -> None:
    client.flushdb()


@pytest.fixture
def store(prediction_store: PredictionStore) -> PredictionStore:
    return prediction_store


def predictions(servers: Servers, lost_after_s: int = 60) -> Counts:
    return read_counts(servers.backend_uri, lost_after_s).predictions


def rows(servers: Servers, lost_after_s: int = 60) -> Counts:
    return read_counts(servers.backend_uri, lost_after_s).rows


def new_ids(count: int) -> list[str]:
    return [str(uuid4()) for _ in range(count)]


def marked(store: PredictionStore, ids: list[str], lifetime_s: float = LIFETIME_S, published_group: int = 0) -> int:
    return store.mark_queued(dict.fromkeys(ids, lifetime_s), published_group)


# Predictions


def test_an_empty_store_counts_nothing(servers: Servers) -> None:
    assert predictions(servers) == rows(servers) == NONE
    assert predictions(servers).waiting == 0


def test_a_prediction_is_accepted_when_its_message_was_published(servers: Servers, store: PredictionStore) -> None:
    group = marked(store, new_ids(3))
    assert predictions(servers) == NONE
    store.accept(group)
    store.accept(group)
    assert predictions(servers) == counts(3)
    assert predictions(servers).waiting == 3


def test_the_next_message_counts_the_last_one_as_accepted(servers: Servers, store: PredictionStore) -> None:
    first = marked(store, new_ids(3))
    second = marked(store, new_ids(2), published_group=first)
    assert predictions(servers) == counts(3)
    marked(store, new_ids(1), published_group=second)
    store.accept(first)
    assert predictions(servers) == counts(5)


def test_the_first_end_of_a_message_counts_all_of_it_as_accepted(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(3)
    group = marked(store, ids)
    store.finish({ids[0]: 0.5})
    assert predictions(servers) == counts(3, success=1)
    store.accept(group)
    assert predictions(servers) == counts(3, success=1)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [(0.5, "success"), (FAILURE, "failure"), (EXPIRED, "expired"), (DELETED, "deleted")],
    ids=["success", "failure", "expired", "deleted"],
)
def test_each_terminal_state_is_counted_by_its_name(
    servers: Servers, store: PredictionStore, outcome: Outcome, state: str
) -> None:
    ids = new_ids(2)
    marked(store, ids)
    store.finish(dict.fromkeys(ids, outcome))
    assert predictions(servers) == counts(2, **{state: 2})
    assert predictions(servers).waiting == 0


def test_the_outcomes_of_one_message_are_counted_apart(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(6)
    marked(store, ids)
    outcomes: list[Outcome] = [0.5, FAILURE, EXPIRED, 0.5, 0.5]
    store.finish(dict(zip(ids, outcomes, strict=False)))
    assert predictions(servers) == counts(6, success=3, failure=1, expired=1)


def test_a_redelivered_message_is_counted_once(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(3)
    marked(store, ids)
    for _ in range(3):
        store.finish(dict.fromkeys(ids, 0.5))
        store.finish(dict.fromkeys(ids, FAILURE))
    assert predictions(servers) == counts(3, success=3)


def test_a_deletion_of_a_result_is_not_counted_again(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(2)
    marked(store, ids)
    store.finish({ids[0]: 0.5})
    for task_id in (*ids, *ids):
        store.finish({task_id: DELETED})
    assert predictions(servers) == counts(2, success=1, deleted=1)


def test_an_overdue_prediction_that_is_read_is_counted_as_expired(servers: Servers, store: PredictionStore) -> None:
    (task_id,) = new_ids(1)
    marked(store, [task_id], -1)

    async def fetch() -> None:
        reader = AsyncPredictionStore(connect_async(servers.backend_uri), TTL_S)
        try:
            await asyncio.gather(*(reader.fetch(task_id) for _ in range(5)))
        finally:
            await reader.close()

    asyncio.run(fetch())
    assert predictions(servers) == counts(1, expired=1)


def test_a_prediction_whose_publish_failed_is_not_counted(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(3)
    group = marked(store, ids)
    store.discard(ids)
    store.accept(group)
    assert predictions(servers) == NONE
    store.finish(dict.fromkeys(ids, 0.5))  # the broker has the message all the same
    assert predictions(servers) == NONE


def test_a_message_that_a_worker_got_before_it_was_discarded_leaves_nothing_waiting(
    servers: Servers, store: PredictionStore
) -> None:
    ids = new_ids(3)
    marked(store, ids)
    store.finish({ids[0]: 0.5})
    store.discard(ids)
    assert predictions(servers) == counts(3, success=1, deleted=2)
    assert predictions(servers).waiting == 0


def test_an_id_that_has_a_state_is_not_counted_again(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(3)
    store.accept(marked(store, ids))
    assert marked(store, ids) == 0
    store.accept(marked(store, [*ids, *new_ids(1)]))
    assert predictions(servers) == counts(4)


def test_a_prediction_of_a_version_without_counts_makes_no_number_negative(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    ids = new_ids(4)
    for task_id in ids:
        marker = {"status": "QUEUED", "result": None, "deadline": 2e9, "task_id": task_id}
        client.set(f"celery-task-meta-{task_id}", json.dumps(marker))
    outcomes: list[Outcome] = [0.5, FAILURE, EXPIRED]
    assert store.finish(dict(zip(ids, outcomes, strict=False))) == 3
    assert store.finish({ids[3]: DELETED}) == 1
    assert predictions(servers) == NONE


def test_a_worker_without_counts_leaves_no_prediction_waiting_forever(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    ids = new_ids(2)
    store.accept(marked(store, ids, -1))
    for task_id in ids:
        client.set(f"celery-task-meta-{task_id}", json.dumps({"status": "SUCCESS", "task_id": task_id}))
    assert predictions(servers).waiting == 2
    assert predictions(servers, lost_after_s=0) == counts(2, expired=2)


def test_a_lost_message_is_counted_as_expired_once(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(3)
    store.accept(marked(store, ids, -1))
    store.finish({ids[0]: 0.5})
    assert predictions(servers).waiting == 2
    for _ in range(2):
        assert predictions(servers, lost_after_s=0) == counts(3, success=1, expired=2)
    store.finish(dict.fromkeys(ids, EXPIRED))
    assert predictions(servers) == counts(3, success=1, expired=2)


def test_a_message_that_was_never_published_is_forgotten(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    """An API process was killed after it had written the markers."""
    marked(store, new_ids(3), -1)
    assert predictions(servers, lost_after_s=0) == NONE
    assert client.zcard(PREDICTIONS.waiting) == 0
    assert client.hkeys(PREDICTIONS.counts) == [b"groups"]


def test_nothing_of_a_message_is_left_when_it_has_ended(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    ids = new_ids(3)
    store.accept(marked(store, ids))
    for task_id in ids:
        assert client.zcard(PREDICTIONS.waiting) == 1
        store.finish({task_id: 0.5})
    assert client.zcard(PREDICTIONS.waiting) == 0
    assert set(client.hkeys(PREDICTIONS.counts)) == {b"groups", b"accepted", b"success"}


def test_the_oldest_waiting_message_gives_the_age(
    servers: Servers, store: PredictionStore, client: redis.Redis
) -> None:
    never_published, old, young = (new_ids(2) for _ in range(3))
    groups = [marked(store, ids) for ids in (never_published, old, young)]
    assert predictions(servers).oldest_s == 0
    for group in groups[1:]:
        store.accept(group)
    for group, age_s in zip(groups, (300, 200, 100), strict=True):
        client.zincrby(PREDICTIONS.waiting, -age_s, str(group))
    assert 200 <= predictions(servers).oldest_s < 230
    store.finish({old[0]: 0.5})
    assert 200 <= predictions(servers).oldest_s < 230
    store.finish({old[1]: 0.5})
    assert 100 <= predictions(servers).oldest_s < 130
    store.finish(dict.fromkeys(young, 0.5))
    assert predictions(servers).oldest_s == 0


def test_workers_that_finish_the_same_message_at_once_count_it_once(servers: Servers, store: PredictionStore) -> None:
    ids = new_ids(50)
    store.accept(marked(store, ids))

    def finish(outcome: Outcome) -> None:
        worker = PredictionStore(connect(servers.backend_uri), TTL_S)
        for task_id in ids:
            worker.finish({task_id: outcome})
        worker.close()

    outcomes: list[Outcome] = [0.5, FAILURE, DELETED, 0.5]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(finish, outcomes))
    counted = predictions(servers)
    assert (counted.accepted, sum(counted.ended.values()), counted.waiting) == (50, 50, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_are_those_of_a_ledger_after_any_sequence_of_calls(
    servers: Servers, store: PredictionStore, seed: int
) -> None:
    draw = random.Random(seed)
    accepted: set[str] = set()
    ended: dict[str, str] = {}
    groups: list[tuple[int, list[str]]] = []
    outcomes: dict[str, Outcome] = {"success": 0.5, "failure": FAILURE, "expired": EXPIRED, "deleted": DELETED}
    for _ in range(200):
        if draw.random() < 0.3:
            ids = new_ids(draw.randint(1, 4))
            groups.append((marked(store, ids), ids))
            continue
        if not groups:
            continue
        group, ids = draw.choice(groups)
        if draw.random() < 0.2 and not accepted.issuperset(ids):
            store.discard(ids)
            groups.remove((group, ids))
            continue
        accepted |= set(ids)
        if draw.random() < 0.4:
            store.accept(group)
            continue
        state = draw.choice(list(outcomes))
        some = draw.sample(ids, draw.randint(1, len(ids)))
        store.finish(dict.fromkeys(some, outcomes[state]))
        for task_id in some:
            ended.setdefault(task_id, state)
    expected = {state: list(ended.values()).count(state) for state in outcomes}
    assert predictions(servers) == counts(len(accepted), **expected)


def test_a_store_that_is_away_is_an_error() -> None:
    with pytest.raises(ResultStoreUnavailable):
        read_counts(f"redis://127.0.0.1:{free_port()}/0")


# The memory of the result store


def test_the_memory_and_its_limit_are_those_of_the_store(servers: Servers, client: redis.Redis) -> None:
    memory = read_counts(servers.backend_uri).memory
    assert memory is not None
    assert memory.used_bytes == pytest.approx(client.info("memory")["used_memory"], rel=0.5)
    assert memory.limit_bytes == 0
    client.config_set("maxmemory", "512mb")
    try:
        memory = read_counts(servers.backend_uri).memory
    finally:
        client.config_set("maxmemory", "0")
    assert memory is not None
    assert memory.limit_bytes == 512 * 2**20


def test_a_store_that_refuses_info_has_counts_and_no_memory(
    servers: Servers, client: redis.Redis, store: PredictionStore
) -> None:
    store.accept(marked(store, new_ids(3)))
    client.acl_setuser("limited", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-info"])
    try:
        found = read_counts(servers.backend_uri.replace("://", "://limited:any@"))
    finally:
        client.acl_deluser("limited")
    assert found.predictions == counts(3)
    assert found.memory is None


# Rows of batches


def test_rows_are_accepted_when_all_chunks_were_published(servers: Servers, batch_store: BatchStore) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 4, 2)
    assert rows(servers) == NONE
    batch_store.accept(batch_id)
    batch_store.accept(batch_id)
    assert rows(servers) == counts(4)
    assert rows(servers).waiting == 4
    assert predictions(servers) == NONE


def test_rows_that_ended_before_the_last_chunk_was_published_are_counted(
    servers: Servers, batch_store: BatchStore
) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 4, 2)
    batch_store.finish(batch_id, 0, {0: 0.5, 1: FAILURE}, "v1")
    assert rows(servers) == NONE
    batch_store.accept(batch_id)
    assert rows(servers) == counts(4, success=1, failure=1)
    batch_store.finish(batch_id, 1, {2: 0.5, 3: 0.5}, "v1")
    assert rows(servers) == counts(4, success=3, failure=1)
    assert rows(servers).waiting == 0


def test_a_batch_that_ended_before_it_was_accepted_leaves_nothing_open(
    servers: Servers, batch_store: BatchStore, client: redis.Redis
) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 2, 1)
    batch_store.finish(batch_id, 0, {0: 0.5, 1: 0.5}, "v1")
    batch_store.accept(batch_id)
    assert rows(servers) == counts(2, success=2)
    assert client.zcard(ROWS.waiting) == 0


def test_a_redelivered_chunk_is_counted_once(servers: Servers, batch_store: BatchStore) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 4, 2)
    batch_store.accept(batch_id)
    batch_store.finish(batch_id, 0, {0: 0.5, 1: FAILURE}, "v1")
    batch_store.finish(batch_id, 0, {0: 0.7, 1: 0.7}, "v1")
    batch_store.finish(batch_id, 0, {0: 0.7}, "v1")
    batch_store.finish(batch_id, 1, {3: 0.5}, "v1")
    assert rows(servers) == counts(4, success=2, failure=1)
    for _ in range(2):
        batch_store.finish(batch_id, 1, {2: FAILURE, 3: 0.7}, "v1")
    assert rows(servers) == counts(4, success=2, failure=2)


def test_a_deleted_batch_leaves_no_row_waiting(servers: Servers, batch_store: BatchStore) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 4, 2)
    batch_store.accept(batch_id)
    batch_store.finish(batch_id, 0, {0: 0.5, 1: FAILURE}, "v1")
    for _ in range(2):
        batch_store.delete(batch_id)
        batch_store.finish(batch_id, 1, {2: 0.5, 3: 0.5}, "v1")
    assert rows(servers) == counts(4, success=1, failure=1, deleted=2)


def test_a_batch_that_was_not_published_is_not_counted(servers: Servers, batch_store: BatchStore) -> None:
    batch_id = str(uuid4())
    batch_store.create(batch_id, 4, 2)
    batch_store.finish(batch_id, 0, {0: 0.5, 1: 0.5}, "v1")
    batch_store.delete(batch_id)
    batch_store.accept(batch_id)
    batch_store.accept(str(uuid4()))
    assert rows(servers) == NONE


def test_a_batch_whose_ttl_has_ended_leaves_no_row_waiting(servers: Servers, client: redis.Redis) -> None:
    batch_id = str(uuid4())
    store = BatchStore(connect(servers.backend_uri), result_ttl_s=1)
    store.create(batch_id, 4, 2)
    store.accept(batch_id)
    store.finish(batch_id, 0, {0: 0.5, 1: 0.5}, "v1")
    assert rows(servers) == counts(4, success=2)
    client.delete(f"churn:batch:{batch_id}")
    assert rows(servers, lost_after_s=-2) == counts(4, success=2, expired=2)
    assert client.zcard(ROWS.waiting) == 0
    store.close()
