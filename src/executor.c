/*
 * executor.c
 *		The saga executor: runs local actions as their owner.
 *
 * Takes requests from its coordinator's queue, runs several in one
 * transaction, each in a subtransaction, and answers once they are committed.
 * Beside the effect of each action it commits one row in saga.local_outcome:
 * the local barrier, from which a coordinator that lost the answer learns that
 * the action was done.  An action that failed leaves nothing, so nothing about
 * it needs to be kept.
 *
 * The commit is not flushed: the coordinator's next flush covers it, because
 * its record comes later in the WAL.  Only an action that ends a saga is
 * flushed here, since with it the end becomes visible.
 *
 * Touches no other table of ours but saga.instance, and that only to end a
 * saga together with the definition's ending action.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/params.h"
#include "parser/parse_param.h"
#include "pgstat.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"

#include "callbacks.h"
#include "compat.h"
#include "errors.h"
#include "exec.h"
#include "guc.h"
#include "isolation.h"
#include "result.h"
#include "rows.h"
#include "saga.h"
#include "schedule.h"
#include "signals.h"
#include "spi_util.h"
#include "two_phase.h"

/* The part that is evaluated after a call. */
#define PART_AFTER		PG_UINT16_MAX

/* A prepared action. */
typedef struct ActionKey
{
	int64		definition_id;
	int32		node;
	uint8		op;
	uint8		hook;
	uint8		eval;
	uint16		part;			/* of a decision, from 1; or PART_AFTER */
} ActionKey;

typedef struct ActionPlan
{
	ActionKey		key;
	SPIPlanPtr	plan;
	int			nparams;
	Oid		   *types;			/* as parse analysis found them */
	FmgrInfo   *input;
	Oid		   *ioparam;
} ActionPlan;

/* One action of the batch. */
typedef struct Work
{
	SagaExecRequest request;
	char	  **values;
	SagaExecReply reply;
	char	   *message;
	Jsonb	   *result;
	Jsonb	   *output;			/* of a saga that completes */
	bool		recording;		/* the action has run; its row is being written */
	const char *part;			/* step of a decision that is run */
	SagaLocalAction action;		/* what it can ask who it is */
} Work;

static SagaWorkerSlot *me;
static dsm_segment *segment;
static shm_mq_handle *requests;
static shm_mq_handle *replies;
static HTAB *plans;
static MemoryContext batch_context;

/* ------------------------------------------------------------- queues */

static void
open_queues(void)
{
	shm_mq	   *in;
	shm_mq	   *out;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	segment = dsm_create(SAGA_QUEUE_SIZE * 2, 0);
	dsm_pin_mapping(segment);
	in = shm_mq_create(dsm_segment_address(segment), SAGA_QUEUE_SIZE);
	out = shm_mq_create((char *) dsm_segment_address(segment) + SAGA_QUEUE_SIZE,
						SAGA_QUEUE_SIZE);
	shm_mq_set_receiver(in, MyProc);
	shm_mq_set_sender(out, MyProc);
	requests = shm_mq_attach(in, segment, NULL);
	replies = shm_mq_attach(out, segment, NULL);
	MemoryContextSwitchTo(old);

	LWLockAcquire(&SagaShmem->lock, LW_EXCLUSIVE);
	me->queues = dsm_segment_handle(segment);
	me->ready = true;
	for (int i = 0; i < SAGA_MAX_WORKERS; i++)
	{
		SagaWorkerSlot *slot = &SagaShmem->workers[i];

		if (slot->kind == SAGA_WORKER_COORDINATOR &&
			slot->dboid == MyDatabaseId && slot->latch)
			SetLatch(slot->latch);
	}
	LWLockRelease(&SagaShmem->lock);
}

static Work *
parse_request(const char *data)
{
	Work	   *item = palloc0(sizeof(Work));
	const char *p = data + sizeof(SagaExecRequest);

	memcpy(&item->request, data, sizeof(SagaExecRequest));
	item->values = palloc0(sizeof(char *) * Max(item->request.nvalues, 1));
	for (int i = 0; i < item->request.nvalues; i++)
	{
		int32		length;

		memcpy(&length, p, sizeof(length));
		p += sizeof(length);
		if (length < 0)
			continue;
		item->values[i] = pnstrdup(p, length);
		p += length + 1;
	}
	return item;
}

static void
add_reply(StringInfo message, Work *item)
{
	SagaExecReply *reply = &item->reply;
	int			start = message->len;

	reply->tag = item->request.tag;
	reply->message_length = item->message ? (int32) strlen(item->message) + 1 : 0;
	reply->result_length = item->result ? (int32) VARSIZE(item->result) : 0;
	reply->size = MAXALIGN(sizeof(*reply) + reply->message_length + reply->result_length);
	appendBinaryStringInfo(message, (char *) reply, sizeof(*reply));
	if (item->message)
		appendBinaryStringInfo(message, item->message, reply->message_length);
	if (item->result)
		appendBinaryStringInfo(message, (char *) item->result, reply->result_length);
	while (message->len < start + (int) reply->size)
		appendStringInfoCharMacro(message, '\0');
}

/* One message for all; waits while the queue is full, which the coordinator
 * always drains. */
static void
send_replies(Work **items, int n)
{
	StringInfoData message;

	initStringInfo(&message);
	for (int i = 0; i < n; i++)
		add_reply(&message, items[i]);
	if (shm_mq_send(replies, message.len, message.data, false, true) == SHM_MQ_DETACHED)
		proc_exit(0);
}

/* -------------------------------------------------------------- plans */

typedef struct ParamTypes
{
	Oid		  **types;
	int		   *ntypes;
} ParamTypes;

static void
infer_parameters(ParseState *pstate, void *arg)
{
	ParamTypes *p = arg;

	setup_parse_variable_parameters(pstate, p->types, p->ntypes);
}

static ActionPlan *
plan_of(const ActionKey *key, const SagaCall *call)
{
	bool		found;
	ActionPlan	   *plan = hash_search(plans, key, HASH_FIND, NULL);
	ParamTypes *parse;
	SPIPrepareOptions options;
	SPIPlanPtr	prepared;
	int			n = call->tmpl->nparams;
	MemoryContext old;

	if (plan)
		return plan;

	/* for the plan's life: it analyses the text again after invalidations */
	old = MemoryContextSwitchTo(TopMemoryContext);
	parse = palloc0(sizeof(ParamTypes));
	parse->types = palloc(sizeof(Oid *));
	parse->ntypes = palloc(sizeof(int));
	*parse->types = palloc0(sizeof(Oid) * Max(n, 1));
	*parse->ntypes = n;
	for (int i = 0; i < n; i++)
		(*parse->types)[i] = OidIsValid(call->tmpl->params[i].type) ?
			call->tmpl->params[i].type : UNKNOWNOID;
	MemoryContextSwitchTo(old);

	memset(&options, 0, sizeof(options));
	options.parserSetup = infer_parameters;
	options.parserSetupArg = parse;
	options.parseMode = RAW_PARSE_DEFAULT;
	prepared = SPI_prepare_extended(call->tmpl->sql, &options);
	if (prepared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("this statement cannot be a local action"),
				 errdetail_internal("%s", SPI_result_code_string(SPI_result)),
				 errhint("Put it into a function.")));
	for (int i = 0; i < n; i++)
		if ((*parse->types)[i] == UNKNOWNOID)
			ereport(ERROR,
					(errcode(ERRCODE_INDETERMINATE_DATATYPE),
					 errmsg("could not determine the type of parameter \"%s\"",
							call->tmpl->params[i].name),
					 errhint("Write a cast, for example :%s::text.",
							 call->tmpl->params[i].name)));
	SPI_keepplan(prepared);

	plan = hash_search(plans, key, HASH_ENTER, &found);
	plan->plan = prepared;
	plan->nparams = n;
	plan->types = *parse->types;
	plan->input = MemoryContextAllocZero(TopMemoryContext, sizeof(FmgrInfo) * Max(n, 1));
	plan->ioparam = MemoryContextAllocZero(TopMemoryContext, sizeof(Oid) * Max(n, 1));
	for (int i = 0; i < n; i++)
	{
		Oid			function;

		getTypeInputInfo(plan->types[i], &function, &plan->ioparam[i]);
		fmgr_info_cxt(function, &plan->input[i], TopMemoryContext);
	}
	return plan;
}

/* ------------------------------------------------------------- running */

/* The owner as he is now; his rights are checked where they are used. */
static void
check_owner(const SagaDefinition *def)
{
	if (!saga_allow_superuser_steps && superuser_arg(def->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("local actions do not run as a superuser"),
				 errdetail("The owner of saga \"%s\" is a superuser.", def->name),
				 errhint("Give the definition to an ordinary role with saga.alter_owner(), or set saga.allow_superuser_steps.")));
}

/* Values of those parameters that are only known now: :result. */
static void
bind_result(const SagaTemplate *tmpl, Jsonb *result, char **values)
{
	for (int i = 0; i < tmpl->nparams; i++)
	{
		SagaTemplate one = *tmpl;
		SagaValues	known;

		if (tmpl->params[i].scope != SAGA_PARAM_SYSTEM ||
			tmpl->params[i].index != SAGA_SYS_RESULT)
			continue;
		memset(&known, 0, sizeof(known));
		known.node = SAGA_NO_NODE;
		known.result = result;
		one.nparams = 1;
		one.params = &tmpl->params[i];
		saga_template_bind(&one, &known, &values[i]);
	}
}

/* One statement as the owner; its result, in the batch's memory. */
static Jsonb *
run_statement(Work *item, SagaDefinition *def, SagaCall *call, int part,
			  char **values)
{
	ActionKey		key;
	Jsonb	   *result;
	ActionPlan	   *plan;
	ParamListInfo params;
	SPIExecuteOptions options;
	SagaUserSwitch saved;
	int			rc;

	check_owner(def);
	memset(&key, 0, sizeof(key));
	key.part = part;
	key.definition_id = def->id;
	key.node = item->request.node;
	key.op = item->request.op;
	key.hook = item->request.hook;
	key.eval = item->request.eval;

	saga_run_as_begin(def->owner, def->search_path, &saved);
	plan = plan_of(&key, call);
	params = makeParamList(plan->nparams);
	for (int i = 0; i < plan->nparams; i++)
	{
		params->params[i].value = InputFunctionCall(&plan->input[i], values[i],
													plan->ioparam[i], -1);
		params->params[i].isnull = values[i] == NULL;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = plan->types[i];
	}
	memset(&options, 0, sizeof(options));
	options.params = params;
	rc = SPI_execute_plan_extended(plan->plan, &options);
	if (rc < 0)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("this statement cannot be a local action"),
				 errdetail_internal("%s", SPI_result_code_string(rc)),
				 errhint("Put it into a function.")));
	result = saga_result_from_spi(call, rc, batch_context);
	saga_run_as_end(&saved);
	if (SPI_tuptable)
		SPI_freetuptable(SPI_tuptable);
	return result;
}

/*
 * The local steps of two-phase commit, one after the other.  What the names of
 * earlier ones stand for is known only here.
 */
static void
run_parts(Work *item, SagaDefinition *def, SagaCall *call)
{
	char	  **values = item->values;
	Jsonb	   *results = NULL;

	for (int i = 0; i < call->nparts; i++)
	{
		SagaCall   *part = call->parts[i];
		Jsonb	   *result;

		item->part = call->part_names[i];
		saga_call_bind_results(part, item->request.node, results, values);
		result = run_statement(item, def, part, i + 1, values);
		CommandCounterIncrement();
		results = saga_results_add(results, call->part_names[i], result);
		values += part->tmpl->nparams;
	}
	item->part = NULL;
	item->result = results;
}

static bool
is_true(Jsonb *value)
{
	JsonbValue	v;

	return value && JB_ROOT_IS_SCALAR(value) &&
		JsonbExtractScalar(&value->root, &v) && v.type == jbvBool && v.val.boolean;
}

/* The call, and what is evaluated after it. */
static void
run_action(Work *item, SagaDefinition *def, SagaCall *call, SagaCall *after)
{
	char	  **more = item->values + (call ? call->tmpl->nparams : 0);
	Jsonb	   *value;

	saga_accepted_now = false;
	saga_accepted_allowed = call && call->callback && item->request.eval == SAGA_EVAL_NONE;
	if (call && call->role == SAGA_BRANCH_DECIDE)
		run_parts(item, def, call);
	else if (call)
		item->result = run_statement(item, def, call, 0, item->values);
	saga_accepted_allowed = false;
	item->reply.answer = saga_accepted_now ?
		SAGA_ANSWER_ACCEPTED : SAGA_ANSWER_DONE;
	if (after == NULL || item->reply.answer == SAGA_ANSWER_ACCEPTED)
		return;
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	bind_result(after->tmpl, item->result, more);
	value = run_statement(item, def, after, PART_AFTER, more);
	PopActiveSnapshot();
	if (item->request.hook == SAGA_HOOK_COMPLETED)
		item->output = item->result = value;
	else if (is_true(value))
		ereport(ERROR,
				(errcode(ERRCODE_SAGA_DECLINED),
				 errmsg("decline_if is true"),
				 errdetail("The result was %.1000s.", item->result ?
						   JsonbToCString(NULL, &item->result->root, VARSIZE(item->result)) :
						   "null")));
}

static void
outcome_key(const Work *item, Datum *key)
{
	key[0] = UUIDPGetDatum(&item->request.saga_id);
	key[1] = Int32GetDatum(item->request.step);
	key[2] = CharGetDatum(saga_outcome_op(item->request.op));
}

/* The local barrier: committed with the effect, at most once. */
static void
record_outcome(Work *item)
{
	SagaTable  *table = saga_table_open("local_outcome", RowExclusiveLock);
	Datum		v[7];
	bool		n[7] = {0};

	outcome_key(item, v);
	v[3] = Int16GetDatum(saga_bucket(&item->request.saga_id));
	v[4] = Int32GetDatum(item->request.attempt);
	n[5] = item->result == NULL;
	v[5] = item->result ? JsonbPGetDatum(item->result) : (Datum) 0;
	v[6] = BoolGetDatum(item->reply.answer == SAGA_ANSWER_ACCEPTED);
	saga_table_insert(table, v, n);
	saga_table_close(table);
}

/* The ending action ends the saga in its own transaction. */
static void
end_instance(Work *item)
{
	static SPIPlanPtr plan = NULL;
	Datum		values[3];
	char		nulls[4] = "   ";

	if (item->request.has_signals && !saga_end_allowed(&item->request.saga_id))
	{
		/* the coordinator takes it first */
		item->reply.free = true;
		ereport(ERROR,
				(errcode(ERRCODE_LOCK_NOT_AVAILABLE),
				 errmsg("a signal for the saga is on its way")));
	}
	if (plan == NULL)
	{
		Oid			types[3] = {UUIDOID, TEXTOID, JSONBOID};
		SPIPlanPtr	fresh = SPI_prepare("UPDATE saga.instance SET state = $2, output = $3,"
										" ended_at = pg_catalog.clock_timestamp() WHERE id = $1",
										3, types);

		if (fresh == NULL || SPI_keepplan(fresh) != 0)
			elog(ERROR, "could not prepare the end of a saga");
		plan = fresh;
	}
	values[0] = UUIDPGetDatum(&item->request.saga_id);
	values[1] = CStringGetTextDatum(item->request.hook == SAGA_HOOK_COMPLETED ?
									"completed" : "compensated");
	values[2] = item->output ? JsonbPGetDatum(item->output) : (Datum) 0;
	nulls[2] = item->output ? ' ' : 'n';
	SPI_execute_plan(plan, values, nulls, false, 0);
	if (item->request.holds)
	{
		SagaIsolationEnd end = {item->request.saga_id, item->request.hook == SAGA_HOOK_COMPLETED};

		saga_isolation_end(&end, 1);
	}
}

/*
 * The row was there: this action had been done before, and what it has just
 * done again is rolled back.  The answer is what it gave the first time.
 */
static void
answer_from_outcome(Work *item)
{
	SagaTable  *table;
	Datum		key[3];
	Datum		v[7];
	bool		n[7];

	PushActiveSnapshot(GetLatestSnapshot());
	table = saga_table_open("local_outcome", AccessShareLock);
	outcome_key(item, key);
	if (saga_table_fetch(table, key, v, n))
	{
		memset(&item->reply, 0, sizeof(item->reply));
		item->reply.answer = DatumGetBool(v[6]) ? SAGA_ANSWER_ACCEPTED : SAGA_ANSWER_DONE;
		item->message = NULL;
		item->result = n[5] ? NULL : DatumGetJsonbPCopy(v[5]);
	}
	saga_table_close(table);
	PopActiveSnapshot();
}

static void
arm_limits(const Work *item, const SagaCall *call)
{
	LockTimeout = item->request.solo ? 0 : SAGA_SHARED_LOCK_MS;
	enable_timeout_after(STATEMENT_TIMEOUT,
						 item->request.solo ? Max(call->timeout_ms, 1) : SAGA_SHARED_RUN_MS);
}

static void
disarm_limits(void)
{
	saga_accepted_allowed = false;
	disable_timeout(STATEMENT_TIMEOUT, false);
	LockTimeout = 0;
	QueryCancelPending = false;
}

static bool
ends_saga(const Work *item)
{
	return item->request.hook == SAGA_HOOK_COMPLETED ||
		item->request.hook == SAGA_HOOK_COMPENSATED;
}

/* The error just caught, as an answer. */
static void
answer_error(Work *item, const SagaCall *call)
{
	ErrorData  *error;
	MemoryContext old = MemoryContextSwitchTo(batch_context);

	error = CopyErrorData();
	FlushErrorState();
	strlcpy(item->reply.sqlstate, unpack_sql_state(error->sqlerrcode),
			sizeof(item->reply.sqlstate));
	item->message = error->detail ?
		psprintf("%s (%s)", error->message, error->detail) :
		pstrdup(error->message ? error->message : "unknown error");
	if (item->part)
		item->message = psprintf("step \"%s\": %s", item->part, item->message);
	item->result = NULL;
	item->reply.answer = saga_classify_sqlstate(item->reply.sqlstate, call);
	item->reply.alone = !item->request.solo && !item->reply.free &&
		(error->sqlerrcode == ERRCODE_QUERY_CANCELED ||
		 error->sqlerrcode == ERRCODE_LOCK_NOT_AVAILABLE ||
		 error->sqlerrcode == ERRCODE_T_R_DEADLOCK_DETECTED);
	MemoryContextSwitchTo(old);
}

static void
begin_local(Work *item)
{
	item->action.saga_id = item->request.saga_id;
	item->action.step = item->request.node;
	item->action.op = item->request.op;
	saga_local_begin(&item->action);
}

static void
end_local(Work *item)
{
	saga_local_end();
	if (item->request.op == SAGA_OP_UNDO && item->request.holds)
		saga_isolation_undone(&item->request.saga_id, item->request.node);
	item->reply.holds = item->action.took;
}

/* The action is undone and wants a lock: what stays is its place in the queue. */
static void
wait_for_lock(Work *item)
{
	SagaLockWait wait;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		saga_lock_queue(&item->action, &wait);
		PopActiveSnapshot();
		ReleaseCurrentSubTransaction();
		item->reply.answer = wait.answer;
		item->reply.alone = false;
		item->reply.holds = true;
		item->reply.free = wait.answer == SAGA_ANSWER_TRANSIENT;
		item->reply.retry_ms = wait.retry_ms;
		if (wait.message)
		{
			item->message = MemoryContextStrdup(batch_context, wait.message);
			strlcpy(item->reply.sqlstate, unpack_sql_state(ERRCODE_SAGA_DECLINED),
					sizeof(item->reply.sqlstate));
		}
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(batch_context);
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
}

/*
 * An expression only reads, and leaves no row: it may be evaluated again.
 */
static void
run_item(Work *item)
{
	SagaDefinition *volatile def = NULL;
	SagaCall   *volatile call = NULL;
	SagaCall   *volatile after = NULL;
	SagaExecRequest *r = &item->request;
	TimestampTz started = GetCurrentTimestamp();

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(batch_context);
	PG_TRY();
	{
		def = saga_definition_by_id(r->definition_id);
		if (def == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_OBJECT),
					 errmsg("definition " INT64_FORMAT " does not exist",
							r->definition_id)));
		if (r->two_phase)
			def = def->two_phase;
		call = saga_exec_call(def, r->node, r->op, r->hook, r->eval);
		after = saga_exec_after(def, call, r->op, r->hook, r->eval);
		if ((call == NULL && after == NULL) ||
			(call ? call->tmpl->nparams : 0) + (after ? after->tmpl->nparams : 0) != r->nvalues)
			ereport(ERROR,
					(errcode(ERRCODE_DATA_CORRUPTED),
					 errmsg("definition of saga \"%s\" has no such local action", def->name)));
		arm_limits(item, call ? call : after);
		PushActiveSnapshot(GetTransactionSnapshot());
		if (r->eval != SAGA_EVAL_NONE)
		{
			XactReadOnly = true;	/* until the end of the subtransaction */
			run_action(item, def, call, after);
		}
		else
		{
			begin_local(item);
			run_action(item, def, call, after);
			end_local(item);
		}
		PopActiveSnapshot();
		disarm_limits();
		if (r->eval == SAGA_EVAL_NONE)
		{
			CommandCounterIncrement();
			PushActiveSnapshot(GetTransactionSnapshot());
			item->recording = true;
			record_outcome(item);
			item->recording = false;
			if (ends_saga(item))
				end_instance(item);
			PopActiveSnapshot();
		}
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		disarm_limits();
		answer_error(item, call);
		RollbackAndReleaseCurrentSubTransaction();
		MemoryContextSwitchTo(batch_context);
		if (item->recording)
			answer_from_outcome(item);
		else if (saga_local_waits())
			wait_for_lock(item);
		saga_local_reset();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
	item->reply.slow = GetCurrentTimestamp() > started + SAGA_SHARED_RUN_MS * 1000 / 2;
}

/* Deferred triggers must not fire at commit, as the worker's superuser. */
static void
constraints_immediate(void)
{
	ConstraintsSetStmt *stmt = makeNode(ConstraintsSetStmt);

	AfterTriggerSetState(stmt);
}

/*
 * As many of the items as fit into one transaction (an action that runs alone
 * fits by itself).  Returns how many; they are committed, or *failed is set
 * and nothing of them happened.
 */
static int
run_batch(Work **items, int n, bool *failed)
{
	volatile int done = 0;
	volatile bool flush = false;
	TimestampTz until = GetCurrentTimestamp() + SAGA_BATCH_MS * 1000;

	*failed = false;
	PG_TRY();
	{
		if (!saga_worker_begin("running local actions"))
			proc_exit(0);
		constraints_immediate();
		while (done < n)
		{
			Work	   *item = items[done];

			CHECK_FOR_INTERRUPTS();
			if (done > 0 && (item->request.solo || items[0]->request.solo ||
							 item->request.hook == SAGA_HOOK_SCHEDULES))
				break;
			if (ends_saga(item))
				flush = true;
			run_item(item);
			done++;
			/* others must see soon who waits */
			if (done == SAGA_BATCH_ACTIONS || item->reply.free ||
				GetCurrentTimestamp() > until)
				break;
		}
		saga_worker_commit(flush);
		/* advisory locks an action took for its session end with it */
		LockReleaseAll(USER_LOCKMETHOD, true);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(batch_context);
		disarm_limits();
		answer_error(items[0], NULL);
		saga_worker_abort();
		*failed = true;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
	return Max(done, 1);
}

/* Old sagas and partitions go, new partitions come; its own transaction. */
static void
run_upkeep(Work *item)
{
	PG_TRY();
	{
		if (!saga_worker_begin("upkeep"))
			proc_exit(0);
		if (SPI_execute("SELECT * FROM saga.upkeep()", false, 0) != SPI_OK_SELECT)
			elog(ERROR, "could not run saga.upkeep()");
		saga_worker_commit(false);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(batch_context);
		answer_error(item, NULL);
		saga_worker_abort();
		ereport(LOG,
				(errmsg("upkeep of the saga log did not finish: %s", item->message),
				 errhint("It is tried again; SELECT saga.upkeep() runs it at once.")));
	}
	PG_END_TRY();
	MemoryContextSwitchTo(batch_context);
}

static void
serve(Work **items, int n)
{
	while (n > 0)
	{
		bool		failed = false;
		int			done = 1;

		if (items[0]->request.hook == SAGA_HOOK_UPKEEP)
			run_upkeep(items[0]);
		else if (items[0]->request.hook == SAGA_HOOK_SCHEDULES)
			saga_schedules_run();
		else
			done = run_batch(items, n, &failed);
		if (failed && done > 1)
		{
			/* the culprit is found by running the first of them alone */
			memset(&items[0]->reply, 0, sizeof(SagaExecReply));
			items[0]->message = NULL;
			done = run_batch(items, 1, &failed);
		}
		for (int i = 0; i < done; i++)
			if (items[i]->reply.answer != SAGA_ANSWER_DONE &&
				items[i]->reply.answer != SAGA_ANSWER_ACCEPTED)
				pg_atomic_fetch_add_u64(&me->errors, 1);
		send_replies(items, done);
		pg_atomic_fetch_add_u64(&me->turns, 1);
		pg_atomic_fetch_add_u64(&me->items, done);
		items += done;
		n -= done;
	}
}

/* Take what the queue holds, up to max requests; 0 if there is nothing yet. */
static int
take_requests(Work ***items, int max)
{
	List	   *list = NIL;
	Size		nbytes;
	void	   *data;

	while (list_length(list) < max)
	{
		shm_mq_result result = shm_mq_receive(requests, &nbytes, &data, true);

		if (result == SHM_MQ_DETACHED)
			proc_exit(0);		/* our coordinator is gone, and we go with it */
		if (result == SHM_MQ_WOULD_BLOCK)
			break;
		for (Size at = 0; at < nbytes;)
		{
			uint32		size;

			memcpy(&size, (char *) data + at, sizeof(size));
			list = lappend(list, parse_request((char *) data + at));
			at += size;
		}
	}
	if (list == NIL)
		return 0;
	*items = (Work **) palloc(sizeof(Work *) * list_length(list));
	for (int i = 0; i < list_length(list); i++)
		(*items)[i] = list_nth(list, i);
	return list_length(list);
}

void
saga_executor_main(Datum main_arg)
{
	HASHCTL		ctl;

	me = saga_worker_start(main_arg, false);
	batch_context = AllocSetContextCreate(TopMemoryContext, "saga executor batch",
										  ALLOCSET_DEFAULT_SIZES);
	memset(&ctl, 0, sizeof(ctl));
	ctl.keysize = sizeof(ActionKey);
	ctl.entrysize = sizeof(ActionPlan);
	plans = hash_create("saga action plans", 256, &ctl, HASH_ELEM | HASH_BLOBS);
	open_queues();

	for (;;)
	{
		Work	  **items;
		int			n;

		saga_worker_interrupts();
		MemoryContextSwitchTo(batch_context);
		n = take_requests(&items, SAGA_BATCH_ACTIONS);
		if (n == 0)
		{
			(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_EXIT_ON_PM_DEATH, -1L,
							 saga_wait_event("SagaExecutorMain"));
			ResetLatch(MyLatch);
			continue;
		}
		serve(items, n);
		MemoryContextSwitchTo(batch_context);
		MemoryContextReset(batch_context);
	}
}
