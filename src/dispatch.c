/*
 * dispatch.c
 *		A coordinator's calls that are out, and its executors.
 *
 * Called by coordinator.c and runs.c.  Owns the queues to the executors and
 * the table of calls by tag.  Reads no table of ours but, after the loss of an
 * executor, saga.local_outcome.
 *
 * An action that shares its transaction is undone after a few milliseconds
 * and comes back wanting to be alone.  All executors but one may be
 * busy with such actions, so that short ones never wait for long ones.
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "storage/proc.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"

#include "amend.h"
#include "child.h"
#include "compat.h"
#include "coordinator.h"
#include "guc.h"
#include "schedule.h"
#include "two_phase.h"

#define MAX_EXECUTORS	32
#define MAX_SHARED_OUT	64		/* requests ahead of one executor */

typedef struct Executor
{
	int			slot;			/* -1: free */
	uint64		generation;
	dsm_segment *segment;
	shm_mq_handle *requests;
	shm_mq_handle *replies;
	int			out;			/* calls it has */
	bool		solo;			/* busy with a long one */
	StringInfoData next;		/* requests for the next message */
	StringInfoData sending;		/* the message that is half in the queue */
	StringInfoData received;	/* replies being taken, one after the other */
	int			taken;			/* bytes of them: an error skips one, not all */
	bool		gone;
} Executor;

static Executor executors[MAX_EXECUTORS];
static SagaWorkerSlot *me;
static HTAB *calls;
static uint64 next_tag = 1;

/* Calls that wait for an executor: short ones, and those that run alone. */
static dlist_head waiting_shared = DLIST_STATIC_INIT(waiting_shared);
static dlist_head waiting_solo = DLIST_STATIC_INIT(waiting_solo);

void
saga_dispatch_init(SagaWorkerSlot *coordinator)
{
	HASHCTL		ctl;

	me = coordinator;
	for (int i = 0; i < MAX_EXECUTORS; i++)
	{
		executors[i].slot = -1;
		initStringInfo(&executors[i].next);
		initStringInfo(&executors[i].sending);
		initStringInfo(&executors[i].received);
	}
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(uint64);
	ctl.entrysize = sizeof(SagaCallOut);
	calls = hash_create("saga calls", 1024, &ctl, HASH_ELEM | HASH_BLOBS);
}

/* --------------------------------------------------------------- calls */

SagaCallOut *
saga_call_out(SagaRun *run, SagaCall *call, int node, SagaOp op, SagaHook hook,
			  int attempt)
{
	uint64		tag = next_tag++;
	bool		found;
	SagaCallOut *out = hash_search(calls, &tag, HASH_ENTER, &found);

	memset((char *) out + sizeof(out->tag), 0, sizeof(*out) - sizeof(out->tag));
	out->run = run;
	out->call = call;
	out->saga_id = run->row.id;
	out->node = node;
	out->op = op;
	out->hook = hook;
	out->attempt = attempt;
	out->eval = SAGA_EVAL_NONE;
	out->executor = -1;
	run->calls++;
	return out;
}

void
saga_call_done(SagaCallOut *call)
{
	uint64		tag = call->tag;

	if (call->run)
		call->run->calls--;
	if (call->message)
		pfree(call->message);
	if (call->local && call->executor >= 0)
	{
		executors[call->executor].out--;
		if (call->solo)
			executors[call->executor].solo = false;
	}
	hash_search(calls, &tag, HASH_REMOVE, NULL);
}

SagaCallOut *
saga_call_by_tag(uint64 tag)
{
	return hash_search(calls, &tag, HASH_FIND, NULL);
}

/* What it runs is cancelled, like a session's statement. */
static void
stop_executor(int index)
{
	const SagaWorkerSlot *slot = &SagaShmem->workers[executors[index].slot];

	LWLockAcquire(&SagaShmem->lock, LW_SHARED);
	if (slot->generation == executors[index].generation && slot->pid != 0)
		kill(slot->pid, SIGINT);
	LWLockRelease(&SagaShmem->lock);
}

void
saga_calls_forget_run(SagaRun *run)
{
	HASH_SEQ_STATUS status;
	SagaCallOut *call;

	if (run->calls == 0)
		return;
	hash_seq_init(&status, calls);
	while ((call = hash_seq_search(&status)) != NULL)
		if (call->run == run)
			call->run = NULL;
	run->calls = 0;
}

/*
 * Nobody waits for a call's answer any more; it may come all the same, and
 * counts as ever.  Of local actions only one that runs alone is stopped.
 */
void
saga_call_cancel(SagaRun *run, int step, SagaOp op)
{
	HASH_SEQ_STATUS status;
	SagaCallOut *call;

	if (run->calls == 0)
		return;
	hash_seq_init(&status, calls);
	while ((call = hash_seq_search(&status)) != NULL)
	{
		if (call->run != run || call->node != step || call->op != op)
			continue;
		/* one that was answered before its own end keeps its effect */
		if (call->local && call->solo && call->executor >= 0 &&
			!(call->call && call->call->callback))
			stop_executor(call->executor);
	}
}

bool
saga_call_is_out(SagaRun *run, int step, SagaOp op)
{
	HASH_SEQ_STATUS status;
	SagaCallOut *call;

	if (run->calls == 0)
		return false;
	hash_seq_init(&status, calls);
	while ((call = hash_seq_search(&status)) != NULL)
		if (call->run == run && call->node == step && call->op == op)
		{
			hash_seq_term(&status);
			return true;
		}
	return false;
}

void
saga_call_woken(const SagaRun *run, int32 step)
{
	HASH_SEQ_STATUS status;
	SagaCallOut *call;

	if (run->calls == 0)
		return;
	hash_seq_init(&status, calls);
	while ((call = hash_seq_search(&status)) != NULL)
		if (call->run == run && call->node == step)
			call->woken = true;
}

/* ----------------------------------------------------------- executors */

/*
 * Is this slot an executor of ours?  The executors of a database are dealt
 * out to its coordinators in turn.
 */
static bool
is_mine(SagaWorkerSlot *slot)
{
	return slot->kind == SAGA_WORKER_EXECUTOR && slot->dboid == MyDatabaseId &&
		slot->number / saga_executors == me->number;
}

/*
 * Executors that served our predecessor may still run its actions.  They end
 * by themselves when they look; tell those that do not look.
 */
bool
saga_dispatch_executors_gone(void)
{
	bool		gone = true;

	LWLockAcquire(&SagaShmem->lock, LW_SHARED);
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (is_mine(slot) && slot->pid != 0 && slot->serves != 0 &&
			slot->serves != me->generation)
		{
			kill(slot->pid, SIGTERM);
			gone = false;
		}
	}
	LWLockRelease(&SagaShmem->lock);
	return gone;
}

static void
attach_one(int slot_index, Executor *executor)
{
	SagaWorkerSlot *slot = &SagaShmem->workers[slot_index];
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	char	   *base;

	executor->segment = dsm_attach(slot->queues);
	if (executor->segment == NULL)
	{
		MemoryContextSwitchTo(old);
		return;					/* it has just gone */
	}
	dsm_pin_mapping(executor->segment);
	base = dsm_segment_address(executor->segment);
	shm_mq_set_sender((shm_mq *) base, MyProc);
	shm_mq_set_receiver((shm_mq *) (base + SAGA_QUEUE_SIZE), MyProc);
	executor->requests = shm_mq_attach((shm_mq *) base, executor->segment, NULL);
	executor->replies = shm_mq_attach((shm_mq *) (base + SAGA_QUEUE_SIZE),
									  executor->segment, NULL);
	executor->slot = slot_index;
	executor->generation = slot->generation;
	executor->out = 0;
	executor->solo = false;
	resetStringInfo(&executor->next);
	resetStringInfo(&executor->sending);
	resetStringInfo(&executor->received);
	executor->taken = 0;
	executor->gone = false;
	MemoryContextSwitchTo(old);
}

void
saga_dispatch_attach(void)
{
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];
		Executor   *place = NULL;
		bool		wanted;

		if (!is_mine(slot) || !slot->ready)
			continue;
		for (int e = 0; e < MAX_EXECUTORS; e++)
		{
			if (executors[e].slot == i && executors[e].generation == slot->generation)
			{
				place = NULL;
				break;
			}
			if (executors[e].slot < 0 && place == NULL)
				place = &executors[e];
		}
		if (place == NULL)
			continue;
		LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
		wanted = is_mine(slot) && slot->ready && slot->serves == 0;
		if (wanted)
			slot->serves = me->generation;
		LWLockRelease(&SagaShmem->lock);
		if (wanted)
			attach_one(i, place);
	}
}

static bool
is_gone(Executor *executor)
{
	SagaWorkerSlot *slot = &SagaShmem->workers[executor->slot];

	return slot->kind != SAGA_WORKER_EXECUTOR ||
		slot->generation != executor->generation;
}

/* Send what has gathered for an executor, as one message. */
static void
push_message(Executor *executor)
{
	StringInfoData empty;

	if (executor->sending.len == 0)
	{
		if (executor->next.len == 0)
			return;
		empty = executor->sending;
		executor->sending = executor->next;
		executor->next = empty;
	}
	/* if the queue is gone, the loss of the executor is seen later */
	if (shm_mq_send(executor->requests, executor->sending.len,
					executor->sending.data, true, true) != SHM_MQ_WOULD_BLOCK)
		resetStringInfo(&executor->sending);
}

void
saga_dispatch_flush(void)
{
	for (int i = 0; i < MAX_EXECUTORS; i++)
		if (executors[i].slot >= 0 && !executors[i].gone)
			push_message(&executors[i]);
}

static Executor *
choose_executor(bool solo)
{
	Executor   *best = NULL;
	int			attached = 0;
	int			busy = 0;

	for (int i = 0; i < MAX_EXECUTORS; i++)
	{
		Executor   *e = &executors[i];

		if (e->slot < 0 || e->gone)
			continue;
		attached++;
		if (e->solo)
		{
			busy++;
			continue;
		}
		if (e->out >= (solo ? 1 : MAX_SHARED_OUT))
			continue;
		if (best == NULL || e->out < best->out)
			best = e;
	}
	if (solo && attached > 1 && busy >= attached - 1)
		return NULL;			/* keep one for the short ones */
	return best;
}

static bool
is_job(const SagaCallOut *call)
{
	return call->hook == SAGA_HOOK_UPKEEP || call->hook == SAGA_HOOK_SCHEDULES;
}

/* A job is done, or lost with its executor. */
static void
end_job(SagaCallOut *call)
{
	if (call->hook == SAGA_HOOK_SCHEDULES)
		saga_schedules_ran();
	saga_call_done(call);
}

static void
hand_out(dlist_head *waiting, bool solo)
{
	while (!dlist_is_empty(waiting))
	{
		SagaCallOut *call = dlist_head_element(SagaCallOut, node_link, waiting);
		Executor   *executor = NULL;

		if (call->run != NULL || is_job(call))
		{
			executor = choose_executor(solo);
			if (executor == NULL)
				return;
		}
		dlist_delete(&call->node_link);
		if (executor == NULL)
		{
			saga_call_done(call);	/* nobody wants it any more */
			continue;
		}
		call->executor = (int) (executor - executors);
		executor->out++;
		executor->solo = solo;
		appendBinaryStringInfo(&executor->next, call->message, call->message_length);
		pfree(call->message);
		call->message = NULL;
	}
}

static void
hand_out_waiting(void)
{
	hand_out(&waiting_solo, true);
	hand_out(&waiting_shared, false);
}

/* Queue a local call; its values are bound and copied into the message. */
void
saga_dispatch_local(SagaCallOut *call, char **values, int n)
{
	SagaExecRequest request;
	Size		size = sizeof(request);
	char	   *p;

	memset(&request, 0, sizeof(request));
	request.tag = call->tag;
	request.saga_id = call->saga_id;
	request.definition_id = call->run->def->id;
	request.two_phase = call->run->def->is_two_phase;
	request.node = saga_node_of(call->run, call->node);
	request.step = call->node;
	request.attempt = call->attempt;
	request.op = call->op;
	request.hook = call->hook;
	request.eval = call->eval;
	request.has_signals = call->run->def->graph->nsignals > 0;
	request.nvalues = n;
	request.timeout_ms = saga_amend_timeout(call->run, call->node, call->op == SAGA_OP_UNDO, 0);
	call->solo = request.solo = call->solo || (call->call && call->call->slow);
	request.holds = call->run->holds;
	for (int i = 0; i < n; i++)
		size += sizeof(int32) + (values[i] ? strlen(values[i]) + 1 : 0);
	size = MAXALIGN(size);
	request.size = size;
	call->message = p = MemoryContextAllocZero(TopMemoryContext, size);
	call->message_length = size;
	memcpy(p, &request, sizeof(request));
	p += sizeof(request);
	for (int i = 0; i < n; i++)
	{
		int32		length = values[i] ? (int32) strlen(values[i]) : -1;

		memcpy(p, &length, sizeof(length));
		p += sizeof(length);
		if (length >= 0)
		{
			memcpy(p, values[i], length + 1);
			p += length + 1;
		}
	}
	dlist_push_tail(call->solo ? &waiting_solo : &waiting_shared, &call->node_link);
	hand_out(call->solo ? &waiting_solo : &waiting_shared, call->solo);
}

void
saga_dispatch_job(SagaHook hook)
{
	uint64		tag = next_tag++;
	bool		found;
	SagaCallOut *call = hash_search(calls, &tag, HASH_ENTER, &found);
	SagaExecRequest request;

	memset((char *) call + sizeof(call->tag), 0, sizeof(*call) - sizeof(call->tag));
	memset(&request, 0, sizeof(request));
	call->hook = request.hook = hook;
	call->eval = request.eval = SAGA_EVAL_NONE;
	call->solo = request.solo = hook == SAGA_HOOK_UPKEEP;
	call->local = true;
	call->executor = -1;
	request.tag = tag;
	request.size = MAXALIGN(sizeof(request));
	call->message = MemoryContextAllocZero(TopMemoryContext, request.size);
	call->message_length = request.size;
	memcpy(call->message, &request, sizeof(request));
	dlist_push_tail(call->solo ? &waiting_solo : &waiting_shared, &call->node_link);
	hand_out(call->solo ? &waiting_solo : &waiting_shared, call->solo);
}

static void
take_reply(const char *data)
{
	SagaExecReply reply;
	SagaCallOut *call;
	SagaPayload *payload;
	const char *p = data + sizeof(reply);

	memcpy(&reply, data, sizeof(reply));
	call = saga_call_by_tag(reply.tag);
	if (call == NULL)
		return;
	if (is_job(call))
	{
		end_job(call);
		return;
	}
	if (reply.holds && call->run)
		call->run->holds = true;
	call->retry_after = call->woken ? 0 : reply.retry_ms * (SagaTime) 1000;
	/* a lock wait alone does not make a step a long one */
	if ((reply.alone || call->solo) && call->call)
		call->call->slow = reply.slow;
	if (reply.alone)
	{
		saga_call_again(call, true);
		return;
	}
	payload = MemoryContextAllocZero(saga_turn_context, sizeof(SagaPayload));
	strlcpy(payload->sqlstate, reply.sqlstate, sizeof(payload->sqlstate));
	if (reply.message_length > 0)
	{
		payload->message = MemoryContextStrdup(saga_turn_context, p);
		p += reply.message_length;
	}
	if (reply.result_length > 0)
	{
		payload->result = MemoryContextAlloc(saga_turn_context, reply.result_length);
		memcpy(payload->result, p, reply.result_length);
	}
	if (call->call && call->call->kind == SAGA_CALL_CHILD &&
		reply.answer == SAGA_ANSWER_ACCEPTED)
		saga_child_started(call);
	else if (call->eval != SAGA_EVAL_NONE)
		saga_evaluated(call, reply.answer, payload);
	else
		saga_run_answer(call, reply.answer, reply.free, payload);
}

static void
take_replies(Executor *executor)
{
	while (executor->taken < executor->received.len)
	{
		const char *data = executor->received.data + executor->taken;
		uint32		size;

		memcpy(&size, data, sizeof(size));
		executor->taken += size;
		take_reply(data);
	}
	resetStringInfo(&executor->received);
	executor->taken = 0;
}

/*
 * An executor is gone, and with it its transaction.  What it had committed
 * stands in saga.local_outcome; the rest did not happen.
 */
static void
lose_call(SagaCallOut *call)
{
	SagaOutcome *outcomes;
	int			n;

	if (is_job(call))
	{
		end_job(call);
		return;
	}
	if (call->run == NULL)
	{
		saga_call_done(call);
		return;
	}
	if (call->eval != SAGA_EVAL_NONE)
	{
		saga_run_lost(call);
		return;
	}
	call->run->holds = true;	/* for all that is known */
	outcomes = saga_log_read_outcomes(UINT64CONST(1) << saga_bucket(&call->saga_id),
									  &call->saga_id, &n);
	for (int i = 0; i < n; i++)
		if (outcomes[i].key.node == call->node &&
			outcomes[i].key.op == saga_outcome_op(call->op))
		{
			SagaPayload *payload = MemoryContextAllocZero(saga_turn_context,
														  sizeof(SagaPayload));

			if (outcomes[i].result)
			{
				payload->result = MemoryContextAlloc(saga_turn_context,
													 VARSIZE(outcomes[i].result));
				memcpy(payload->result, outcomes[i].result, VARSIZE(outcomes[i].result));
			}
			saga_run_answer(call, SAGA_ANSWER_DONE, false, payload);
			return;
		}
	saga_run_lost(call);
}

static void
lose_executor(Executor *executor)
{
	HASH_SEQ_STATUS status;
	SagaCallOut *call;
	int			index = (int) (executor - executors);
	List	   *lost = NIL;
	ListCell   *cell;

	if (!executor->gone)
		dsm_detach(executor->segment);
	executor->gone = true;
	saga_worker_look_again();	/* at all that it had committed */
	hash_seq_init(&status, calls);
	while ((call = hash_seq_search(&status)) != NULL)
		if (call->local && call->executor == index)
			lost = lappend(lost, call);
	foreach(cell, lost)
		lose_call(lfirst(cell));	/* each is gone from the table after it */
	executor->slot = -1;
	executor->out = 0;
	executor->solo = false;
}

void
saga_dispatch_pump(void)
{
	saga_dispatch_attach();
	for (int i = 0; i < MAX_EXECUTORS; i++)
	{
		Executor   *e = &executors[i];
		Size		nbytes;
		void	   *data;

		if (e->slot < 0)
			continue;
		if (e->gone)
		{
			lose_executor(e);	/* an error interrupted it */
			continue;
		}
		for (;;)
		{
			shm_mq_result result;

			take_replies(e);
			result = shm_mq_receive(e->replies, &nbytes, &data, true);
			if (result == SHM_MQ_SUCCESS)
			{
				appendBinaryStringInfo(&e->received, data, nbytes);
				continue;
			}
			/* a detached queue is empty: what it held has been read */
			if (result == SHM_MQ_DETACHED && is_gone(e))
				lose_executor(e);
			break;
		}
	}
	hand_out_waiting();
}
