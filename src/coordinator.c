/*
 * coordinator.c
 *		The saga coordinator: start, recovery, the loop.
 *
 * One turn: gather what happened (commits of sessions, answers, timers), let
 * the machine decide, write all records of all sagas in one transaction, then
 * send what waited for it.  No transaction is open while it waits.  It runs no
 * user SQL.  Several coordinators share a database by buckets of saga ids;
 * a lock on each bucket, taken before anything is read, proves sole ownership.
 *
 * The loop never sleeps in a wait for standbys: it commits with a local flush
 * only, and holds back sends until the standbys that are required have the
 * commit, too.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "replication/walsender_private.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

#include "compat.h"
#include "coordinator.h"
#include "guc.h"
#include "http_result.h"
#include "projector.h"
#include "schedule.h"

/* Locks of ours carry a field4 that no SQL function can produce. */
#define SAGA_LOCK_CLASS		0x73616761
#define SAGA_LOCK_FIELD4	77

/* Records that nobody waits for are written this soon (us), or this many. */
#define LAZY_WRITE_AFTER	INT64CONST(10000)
#define LAZY_WRITE_RECORDS	512
#define ADMIT_AT_ONCE		1000
#define STANDBY_POLL_MS		5

/* With more sagas than this, a poll looks for new ones only. */
#define SCAN_ALL_BELOW		100000

/* How a participant says that a later incarnation of us has called it. */
#define STALE_EPOCH			"SGB04"

/* ... or that the call's key was refused before the call came. */
#define KEY_REFUSED			"SGB03"

/* Upkeep: soon after the start, then once an hour (us). */
#define FIRST_UPKEEP		(60 * USECS_PER_SEC)
#define UPKEEP_EVERY		(3600 * USECS_PER_SEC)

static SagaWorkerSlot *me;
static SagaRing *ring;
static uint64 buckets = 0;		/* bit mask */
static int	ncoordinators;
static MemoryContext loop_context;
static SagaAnswer *answers;		/* arrived during the wait */
static int	nanswers = 0,
			maxanswers = 0;
static MemoryContext answers_context;
static int	write_failures = 0;
static const char *fenced = NULL;	/* why participants refuse us */
static TimestampTz write_again = 0;
static TimestampTz next_upkeep = DT_NOEND;
static XLogRecPtr recovered_at;	/* what was read then counts as written here */

static void
say(const char *activity)
{
	strlcpy(me->activity, activity, sizeof(me->activity));
}

/* ------------------------------------------------------------- start */

static void
nap(long ms)
{
	saga_worker_interrupts();
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 ms, saga_wait_event("SagaCoordinatorStart"));
	ResetLatch(MyLatch);
	saga_worker_interrupts();
}

static void
own_buckets(void)
{
	say("waiting for its buckets");
	for (int b = 0; b < SAGA_BUCKETS; b++)
	{
		LOCKTAG		tag;
		bool		got = false;

		if (b % ncoordinators != me->number)
			continue;
		SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, SAGA_LOCK_CLASS, b, SAGA_LOCK_FIELD4);
		while (!got)
		{
			if (!saga_worker_begin("taking buckets"))
				proc_exit(0);
			got = LockAcquire(&tag, ExclusiveLock, true, true) != LOCKACQUIRE_NOT_AVAIL;
			saga_worker_commit(false);
			if (!got)
				nap(20);
		}
		buckets |= UINT64CONST(1) << b;
	}
}

static void
raise_epoch(SagaEpoch *epoch)
{
	for (;;)
	{
		char	   *held;
		bool		is_held;

		if (!saga_worker_begin("raising the epoch"))
			proc_exit(0);
		MemoryContextSwitchTo(loop_context);
		held = saga_log_raise_epoch(epoch);
		is_held = held != NULL;
		if (held)
		{
			if (strncmp(me->activity, "held", 4) != 0)
				ereport(LOG,
						(errmsg("sagas are held: %s", held),
						 errhint("If the sagas shall go on here and nowhere else, call saga.take_over(). In a high-availability cluster set saga.host_guard to the same string on all members.")));
			snprintf(me->activity, sizeof(me->activity), "held: %s", held);
		}
		saga_worker_commit(true);	/* flushed before the first call */
		MemoryContextReset(loop_context);
		if (!is_held)
			return;
		nap(Min(saga_safety_poll_interval, 1000));
	}
}

static void
found_live(const SagaLive *live)
{
	if (live->due != 0)
		saga_sleeps(&live->id, live->due);
	else
		saga_arrive(&live->id, 0, live->priority);
}

/* Sagas of ours that we do not know, or of them those nobody has begun. */
static void
scan_tables(bool all)
{
	int			n;
	SagaRingEntry *inbox;

	saga_log_read_live(buckets, !all, found_live);
	inbox = saga_log_list_inbox(buckets, &n);
	for (int i = 0; i < n; i++)
		saga_arrive(&inbox[i].saga_id, inbox[i].inbox_id, 0);
}

static void
recover(void)
{
	SagaOutcome *outcomes;
	int			n;

	say("recovering");
	if (!saga_worker_begin("recovering sagas"))
		proc_exit(0);
	MemoryContextSwitchTo(loop_context);
	scan_tables(true);
	outcomes = saga_log_read_outcomes(buckets, NULL, &n);
	saga_recovered_outcomes(outcomes, n);
	/* a saga whose end only an executor wrote is not among the live ones */
	for (int i = 0; i < n; i++)
		saga_arrive(&outcomes[i].key.saga_id, 0, 0);
	saga_worker_commit(false);
	MemoryContextReset(loop_context);
}

static void
on_answer(const SagaAnswer *answer, void *arg)
{
	MemoryContext old = MemoryContextSwitchTo(answers_context);
	SagaAnswer *copy;

	if (nanswers == maxanswers)
	{
		maxanswers = Max(64, maxanswers * 2);
		answers = answers ? repalloc(answers, sizeof(SagaAnswer) * maxanswers) :
			palloc(sizeof(SagaAnswer) * maxanswers);
	}
	copy = &answers[nanswers++];
	*copy = *answer;
	copy->message = answer->message ? pstrdup(answer->message) : NULL;
	copy->detail = answer->detail ? pstrdup(answer->detail) : NULL;
	copy->hint = answer->hint ? pstrdup(answer->hint) : NULL;
	copy->result = answer->result ? pstrdup(answer->result) : NULL;
	MemoryContextSwitchTo(old);
}

static void
at_exit(int code, Datum arg)
{
	if (ring)
		saga_ring_release(ring);
	ring = NULL;
	saga_connector_close_all();
}

/*
 * Projections do not wait for sagas, which may be held here for long: nobody
 * else tells the launcher, after a start of the server, that there are some.
 */
static void
look_for_projections(void)
{
	if (!saga_worker_begin("looking for projections"))
		proc_exit(0);
	saga_projector_if_needed();
	saga_worker_commit(false);
}

static void
start(Datum main_arg)
{
	SagaEpoch	epoch;

	me = saga_worker_start(main_arg,
						   SagaShmem->workers[DatumGetInt32(main_arg)].number == 0);
	loop_context = AllocSetContextCreate(TopMemoryContext, "saga coordinator loop",
										 ALLOCSET_DEFAULT_SIZES);
	answers_context = AllocSetContextCreate(TopMemoryContext, "saga answers",
											ALLOCSET_DEFAULT_SIZES);
	ncoordinators = saga_coordinators;
	before_shmem_exit(at_exit, (Datum) 0);

	if (me->number == 0)
		look_for_projections();
	saga_dispatch_init(me);
	own_buckets();
	say("waiting for executors of its predecessor");
	while (!saga_dispatch_executors_gone())
		nap(20);
	saga_runs_init();
	raise_epoch(&epoch);
	saga_poll_init();
	saga_connector_init(&epoch, saga_max_payload, on_answer, NULL);

	/* from here on commits are announced to us; what came before is scanned */
	ring = saga_ring_claim(MyDatabaseId, me->number);
	if (ring == NULL)
		ereport(LOG,
				(errmsg("too many saga coordinators on this server: no ring is free"),
				 errdetail("New sagas are found every saga.safety_poll_interval only.")));
	recover();
	recovered_at = GetXLogInsertRecPtr();
	me->ready_at = saga_now();
	me->ready = true;
	say("");
	if (me->number == 0)
		next_upkeep = saga_now() + FIRST_UPKEEP;
}

/* -------------------------------------------------------------- a turn */

/* What a participant answered, as an event. */
static void
take_answer(SagaAnswer *answer)
{
	SagaCallOut *call = saga_call_by_tag(answer->tag);
	SagaAnswerKind kind = answer->kind;
	SagaPayload *payload;
	char	   *problem = NULL;

	if (call == NULL && !saga_orphans_asked(answer->tag))
		return;
	if (strcmp(answer->sqlstate, STALE_EPOCH) == 0)
	{
		/* no answer to the call: it is us whom they no longer listen to */
		fenced = answer->message ? answer->message : "a participant refused this coordinator";
		return;
	}
	if (call == NULL)
	{
		saga_orphans_answer(answer);
		return;
	}
	payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	strlcpy(payload->sqlstate, answer->sqlstate, sizeof(payload->sqlstate));
	if (strcmp(answer->sqlstate, KEY_REFUSED) == 0)
		kind = SAGA_ANSWER_REFUSED;
	else if (answer->has_sqlstate && kind != SAGA_ANSWER_UNKNOWN &&
		kind != SAGA_ANSWER_DONE && kind != SAGA_ANSWER_REFUSED)
		kind = saga_classify_sqlstate(answer->sqlstate, answer->part > 0 ?
									  call->call->parts[answer->part - 1] : call->call);
	/* nobody was to answer later: being taken on is all there is */
	if (kind == SAGA_ANSWER_ACCEPTED && !call->call->callback)
		kind = SAGA_ANSWER_DONE;
	if (answer->message)
	{
		StringInfoData message;
		MemoryContext old = MemoryContextSwitchTo(saga_turn_context);

		initStringInfo(&message);
		if (answer->part > 0)
			appendStringInfo(&message, "step \"%s\": ",
							 call->call->part_names[answer->part - 1]);
		appendStringInfoString(&message, answer->message);
		if (answer->detail)
			appendStringInfo(&message, " (%s)", answer->detail);
		if (answer->hint && kind == SAGA_ANSWER_BROKEN)
			appendStringInfo(&message, " Hint: %s", answer->hint);
		payload->message = message.data;
		MemoryContextSwitchTo(old);
	}
	if (kind == SAGA_ANSWER_DONE && (answer->result || answer->http_status))
	{
		MemoryContext old = MemoryContextSwitchTo(saga_turn_context);

		payload->result = answer->http_status ?
			saga_http_result(call->call, answer, &problem) :
			saga_result_from_text(call->call, answer->result, &problem);
		/* it was done: that stands, whatever it looks like */
		if (problem)
			payload->message = psprintf("the result is not usable: %s", problem);
		MemoryContextSwitchTo(old);
	}
	call->retry_after = answer->retry_after;
	if (call->asks_first)
		saga_asked_first(call, kind, answer->free, payload);
	else if (kind == SAGA_ANSWER_DONE && call->op == SAGA_OP_ACTION && call->call->decline_if)
		saga_ask_decline_if(call, payload);
	else
		saga_run_answer(call, kind, answer->free, payload);
}

static void
take_ring(void)
{
	SagaRingEntry entries[256];
	bool		overflow = false;
	int			n;

	if (ring == NULL)
		return;
	do
	{
		bool		over;

		n = saga_ring_take(ring, entries, lengthof(entries), &over);
		overflow |= over;
		for (int i = 0; i < n; i++)
			saga_arrive(&entries[i].saga_id, entries[i].inbox_id, entries[i].priority);
	} while (n == (int) lengthof(entries));
	if (overflow)
	{
		saga_worker_look_again();
		scan_tables(saga_runs_known() < SCAN_ALL_BELOW);
	}
}

static bool
turn_is_empty(void)
{
	return saga_turn.nentries == 0 && saga_turn.nchanges == 0 &&
		saga_turn.noutcomes == 0 && saga_turn.ninbox == 0 &&
		saga_turn.nstuck == 0 && saga_turn.nwakeups == 0 &&
		saga_turn.nqueued == 0;
}

static bool
must_write(TimestampTz now)
{
	if (now < write_again)
		return false;
	return saga_turn_flush || saga_turn_commit || saga_turn.nentries >= LAZY_WRITE_RECORDS ||
		(saga_turn_since != 0 && now >= saga_turn_since + LAZY_WRITE_AFTER);
}

/* How far commits are as durable as the administrator asks for. */
static XLogRecPtr
durable_lsn(void)
{
	XLogRecPtr	lsn;

	if (max_wal_senders == 0 || !saga_sync_standbys_defined())
		return PG_UINT64_MAX;
	LWLockAcquire(SyncRepLock, LW_SHARED);
	lsn = WalSndCtl->lsn[SYNC_REP_WAIT_FLUSH];
	LWLockRelease(SyncRepLock);
	return lsn;
}

/* The next of us holds all sagas until saga.take_over(). */
static void
hold_and_leave(const char *reason)
{
	saga_log_hold(reason);
	saga_worker_commit(true);
	proc_exit(0);
}

/*
 * Before the first write: partitions for the days to come.  Without them the
 * log goes to the default partition, which is only harder to get rid of.
 */
static void
make_partitions(void)
{
	static bool made = false;

	if (made || saga_turn.nentries == 0)
		return;
	made = true;
	PG_TRY();
	{
		if (!saga_worker_begin("making log partitions"))
			proc_exit(0);
		if (SPI_execute("SELECT saga.first_log_partitions_()", false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not make log partitions");
		saga_worker_commit(false);
	}
	PG_CATCH();
	{
		EmitErrorReport();
		FlushErrorState();
		saga_worker_abort();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(loop_context);
}

/* All that can happen in one transaction; may raise an error. */
static bool
turn(bool poll_tables)
{
	bool		wrote = false;

	if (!saga_worker_begin("running sagas"))
		proc_exit(0);
	MemoryContextSwitchTo(loop_context);

	if (poll_tables)
		scan_tables(saga_runs_known() < SCAN_ALL_BELOW);
	if (me->number == 0)
		saga_orphans_look(poll_tables);
	if (saga_now() >= next_upkeep)
	{
		next_upkeep = saga_now() + UPKEEP_EVERY;
		saga_dispatch_job(SAGA_HOOK_UPKEEP);
		saga_purge_barriers();
	}
	if (me->number == 0)
		saga_schedules_look(poll_tables);
	take_ring();
	saga_worker_look_again();	/* at the rows the ring announced */
	for (int i = 0; i < nanswers; i++)
	{
		SagaAnswer *answer = &answers[i];

		take_answer(answer);
		answer->tag = 0;		/* taken, should a later one fail */
	}
	nanswers = maxanswers = 0;
	answers = NULL;
	if (fenced)
	{
		/* another copy of this database acts: hold everything here */
		ereport(LOG, (errmsg("this coordinator is fenced off: %s", fenced)));
		hold_and_leave(psprintf("a later copy of this database calls its participants: %s", fenced));
	}
	MemoryContextReset(answers_context);
	saga_dispatch_pump();
	saga_runs_admit(buckets, ADMIT_AT_ONCE);	/* signals before their time-outs */
	saga_runs_timers(saga_now());
	if (saga_found_foreign)
		hold_and_leave(SAGA_HELD_RESTORED);
	saga_sends_release(durable_lsn());
	saga_dispatch_flush();		/* executors work while we write */

	if (must_write(saga_now()))
	{
		saga_worker_look_again();	/* at the outcomes that were answered */
		saga_turn_prepare();
		saga_log_write(&saga_turn);
		pg_atomic_fetch_add_u64(&me->turns, 1);
		pg_atomic_fetch_add_u64(&me->items, saga_turn.nentries);
		wrote = true;
	}
	saga_worker_commit(wrote && saga_turn_flush);
	return wrote;
}

static void
turn_failed(void)
{
	ErrorData  *error;
	char	   *id = NULL;

	MemoryContextSwitchTo(loop_context);
	error = CopyErrorData();
	FlushErrorState();
	saga_worker_abort();
	MemoryContextSwitchTo(loop_context);
	pg_atomic_fetch_add_u64(&me->errors, 1);
	if (saga_current_set)
	{
		id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&saga_current)));
		saga_run_set_aside(&saga_current, error);
		saga_current_set = false;
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("saga %s is set aside: %s", id, error->message),
				 errhint("It is tried again every few seconds; the other sagas go on.")));
	}
	else
	{
		write_failures++;
		write_again = saga_now() +
			(int64) Min(write_failures, 10) * USECS_PER_SEC / 2;
		ereport(LOG,
				(errcode(error->sqlerrcode),
				 errmsg("could not write the saga log: %s", error->message),
				 error->detail ? errdetail_internal("%s", error->detail) : 0,
				 errhint("Nothing is lost; it is tried again.")));
	}
	FreeErrorData(error);
}

static void
run_turn(bool poll_tables)
{
	volatile bool wrote = false;

	make_partitions();
	PG_TRY();
	{
		wrote = turn(poll_tables);
	}
	PG_CATCH();
	{
		turn_failed();
		MemoryContextReset(loop_context);
		return;
	}
	PG_END_TRY();

	if (wrote)
	{
		write_failures = 0;
		saga_turn_written(Max(XactLastCommitEnd, recovered_at));
	}
	pg_atomic_write_u64(&me->loaded, saga_runs_loaded());
	MemoryContextSwitchTo(loop_context);
	MemoryContextReset(loop_context);
}

/* -------------------------------------------------------------- the loop */

static bool
ring_has_entries(void)
{
	return ring && *(volatile uint32 *) &ring->head != *(volatile uint32 *) &ring->tail;
}

static long
sleep_for(TimestampTz next_poll)
{
	TimestampTz now = saga_now();
	SagaTime	due = Min(Min(next_poll, next_upkeep), saga_runs_next_due());

	if (me->number == 0)
		due = Min(due, saga_schedules_due());

	if (!turn_is_empty())
		due = Min(due, saga_turn_flush || saga_turn_commit ? Max(now, write_again) :
				  Max(saga_turn_since + LAZY_WRITE_AFTER, write_again));
	if (saga_sends_wait_for_standby(durable_lsn()))
		due = Min(due, now + STANDBY_POLL_MS * 1000);
	if (saga_arrivals_pending() || saga_sends_held(durable_lsn()))
		return 0;
	if (due <= now)
		return 0;
	return (long) Min((due - now) / 1000 + 1, 3600 * 1000);
}

void
saga_coordinator_main(Datum main_arg)
{
	TimestampTz next_poll;
	uint64		servers_seen;

	start(main_arg);
	servers_seen = saga_server_generation();
	next_poll = saga_now() + (int64) saga_safety_poll_interval * 1000;

	for (;;)
	{
		TimestampTz now;
		bool		poll_tables;

		/* commits from here on set the latch; those before are in the ring */
		pg_atomic_write_u32(&me->asleep, 1);
		pg_memory_barrier();
		(void) saga_poll_wait(ring_has_entries() ? 0 : sleep_for(next_poll),
							  saga_wait_event("SagaCoordinatorMain"));
		pg_atomic_write_u32(&me->asleep, 0);
		saga_worker_interrupts();
		if (saga_worker_reloaded)
		{
			saga_worker_reloaded = false;
			if (saga_coordinators != ncoordinators)
				proc_exit(0);	/* buckets are dealt out anew */
		}
		now = saga_now();
		if (servers_seen != saga_server_generation())
		{
			servers_seen = saga_server_generation();
			saga_connector_server_changed();
		}
		poll_tables = now >= next_poll;
		if (poll_tables)
			next_poll = now + (int64) saga_safety_poll_interval * 1000;
		run_turn(poll_tables);
	}
}
