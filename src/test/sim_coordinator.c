/*
 * sim_coordinator.c
 *		The simulated coordinator: its log, its memory, what it sends and what
 *		it gets; its crashes (see machine_sim.c).
 *
 * It must behave as the real one promises the machine: records before what
 * waits for them, no "no" of an earlier call, the inbox before answers.
 */
#include "sim.h"

SagaState  *live;
SagaState  *fold;
SagaDecision out;
SagaRecord	records[MAX_LOG];
static bool decision_end[MAX_LOG];	/* the transaction ends after it */
int			nlog;
int			nflushed;
static int	nheavy;				/* unflushed records local calls wait for */
bool		went_back[MAX_STEPS];

Call		calls[MAX_CALLS];
int			ncalls;
static int	outbox[MAX_CALLS];
static int	noutbox;

static SagaTime deadline;
int			epoch;

int64		cov_record[SAGA_RECORD_REOPENED + 1];
int64		cov_cause[SAGA_CAUSE_OPERATOR + 1];
int64		cov_reason[SAGA_STUCK_HOOK_FAILS + 1];
int64		cov_answer[SAGA_OP_EVAL + 1][SAGA_ANSWER_ACCEPTED + 1];
int64		ndecisions;
int64		nrecords_total;

/* ------------------------------------------------------- the log */

static void
send_allowed(void)
{
	int			kept = 0;
	int			n = noutbox;

	for (int i = 0; i < n; i++)
	{
		Call	   *call = &calls[outbox[i]];

		if (!call->open || call->epoch != epoch)
			continue;
		/* the ending action waits for the record of the last step in any case */
		if (call->need <= nflushed ||
			(call->local && call->node != SAGA_NODE_END && nheavy == 0))
		{
			if (call->local)
				send_local(outbox[i]);
			else
				send_remote(outbox[i]);
		}
		else
			outbox[kept++] = outbox[i];
	}
	noutbox = kept;
}

/* False if there was nothing to do. */
bool
flush(void)
{
	bool		any = nflushed < nlog || noutbox > 0;

	if (nflushed < nlog)
		trace("  flush %d", nlog);
	for (; nflushed < nlog; nflushed++)
	{
		const SagaRecord *r = &records[nflushed];

		/* consumed outcome rows go once their record is safe */
		if (r->kind == SAGA_RECORD_DONE &&
			(r->op == SAGA_OP_ACTION || r->op == SAGA_OP_UNDO))
			places[place_of(live, r->node,
							r->op == SAGA_OP_UNDO)].outcome_row = false;
		if (r->kind == SAGA_RECORD_HOOK && r->node == SAGA_NODE_END &&
			r->answer == SAGA_ANSWER_DONE)
			hook_row = false;
	}
	nheavy = 0;
	send_allowed();
	return any;
}

/* What the world remembers of a record; also when the log is read again. */
static void
note_record(const SagaRecord *r, int index)
{
	if (r->kind == SAGA_RECORD_INTENT && r->op != SAGA_OP_CLAIM)
		places[place_of(fold, r->node, r->op == SAGA_OP_UNDO)].intent = index + 1;
	if (r->kind == SAGA_RECORD_RETRIED && r->op == SAGA_OP_ACTION)
		places[place_of(fold, r->node, false)].unknown = false;
}

/* One record onto the fold, and who was replaced by it after an undo. */
static void
fold_record(const SagaRecord *r)
{
	bool		back = r->kind == SAGA_RECORD_RESTARTED &&
		fold->direction == SAGA_UNDO;
	int32		nsteps = fold->nsteps;
	static bool was_replaced[MAX_STEPS];

	if (back)
		for (int32 i = 0; i < nsteps; i++)
			was_replaced[i] = fold->steps[i].replaced;
	CHECK(saga_machine_apply(fold, r), "the fold refuses record %d", r->seq);
	CHECK(fold->nsteps < MAX_STEPS, "too many steps");
	for (int32 i = nsteps; i < fold->nsteps; i++)
		went_back[i] = false;
	if (!back)
		return;
	for (int32 i = 0; i < nsteps; i++)
		went_back[i] |= fold->steps[i].replaced && !was_replaced[i];
	CHECK(nodes[fold->steps[r->node].node].max_tries <= 0 ||
		  fold->steps[r->node].value <=
		  nodes[fold->steps[r->node].node].max_tries,
		  "save-point %d is tried once too often", r->node);
}

static void
cover_record(const SagaRecord *r)
{
	const SagaStep *s = r->node >= 0 ? &fold->steps[r->node] : NULL;

	nrecords_total++;
	cov_record[r->kind]++;
	if (r->kind == SAGA_RECORD_STUCK)
		cov_reason[r->reason]++;
	if (r->kind == SAGA_RECORD_UNDO)
	{
		cov_cause[r->cause]++;
		cov[COV_WENT_BACK] += r->value > 0;
		cov[COV_BACK_AND_FULL] += fold->direction == SAGA_UNDO;
	}
	if (r->kind == SAGA_RECORD_INTENT && r->op == SAGA_OP_CLAIM &&
		s->node == graph.pivot && fold->direction == SAGA_FORWARD &&
		!fold->terminating && s->status == SAGA_STEP_FAILED)
		cov[COV_PIVOT_CLAIMED]++;
	if (r->kind == SAGA_RECORD_RESTARTED && fold->direction == SAGA_FORWARD)
		cov[COV_RERUN]++;
	if (r->kind == SAGA_RECORD_INTENT && r->op == SAGA_OP_ACTION &&
		fold->direction == SAGA_UNDO)
		cov[COV_BACK_OUTSIDE]++;
	if (r->kind == SAGA_RECORD_CHOSEN && r->value == 0)
		cov[COV_NOT_TAKEN]++;
	if (r->kind == SAGA_RECORD_BREAKPOINT && r->value == 2)
		cov[COV_BREAK_MET]++;
	if (r->kind == SAGA_RECORD_REOPENED)
		cov[COV_REOPENED]++;
	if (r->kind == SAGA_RECORD_DONE && r->op == SAGA_OP_ACTION &&
		nodes[s->node].kind == SAGA_NODE_SIGNAL)
		cov[s->status == SAGA_STEP_AWAITING ? COV_SIGNAL_AWAITED :
			COV_SIGNAL_EARLY]++;
}

static void
take_record(const SagaRecord *r)
{
	CHECK(nlog < MAX_LOG, "the log is full");
	CHECK(r->seq == nlog + 1, "record %d follows %d", r->seq, nlog);
	trace_record(r);
	records[nlog++] = *r;
	decision_end[nlog - 1] = false;
	cover_record(r);
	if (r->kind != SAGA_RECORD_STARTED && r->kind != SAGA_RECORD_DONE &&
		r->kind != SAGA_RECORD_INTENT)
		nheavy++;
	if (r->kind == SAGA_RECORD_FAILED && r->op != SAGA_OP_CLAIM)
		check_failure(r);
	if (r->kind == SAGA_RECORD_STUCK)
		check_stuck(r);
	fold_record(r);
	note_record(r, nlog - 1);
}

/* ------------------------------------------------------- the coordinator */

static bool
is_awaited(const Call *call)
{
	for (int i = ncalls - 1; i >= 0 && calls[i].epoch == epoch; i--)
		if (calls[i].open && calls[i].node == call->node &&
			calls[i].op == call->op)
			return true;
	return false;
}

/* The open calls of this operation are so no more; false: there were none. */
static bool
close_calls(int32 node, SagaOp op)
{
	bool		found = false;

	for (int i = ncalls - 1; i >= 0 && calls[i].epoch == epoch; i--)
		if (calls[i].open && calls[i].node == node && calls[i].op == op)
		{
			calls[i].open = false;
			found = true;
		}
	return found;
}

static void
take_command(const SagaCommand *c)
{
	Call	   *call;

	if (c->kind == SAGA_CMD_ENDED)
	{
		trace("  ended");
		return;
	}
	if (c->kind == SAGA_CMD_CANCEL_CALL)
	{
		trace("  cancel call: %d %s", c->node, saga_op_name(c->op));
		cov[COV_CANCEL_CALL]++;
		CHECK(close_calls(c->node, c->op), "%d %s is cancelled but not out",
			  c->node, saga_op_name(c->op));
		return;
	}
	CHECK(ncalls < MAX_CALLS, "too many calls");
	CHECK(c->attempt >= 1, "attempt %d", c->attempt);
	call = &calls[ncalls];
	memset(call, 0, sizeof(*call));
	call->node = c->node;
	call->op = c->op;
	call->eval = c->eval;
	call->conditional = c->conditional;
	call->local = c->node < 0 || c->op == SAGA_OP_EVAL;
	call->place = -1;
	if (!call->local)
	{
		const SagaNode *node = &nodes[live->steps[c->node].node];
		bool		undo = c->op == SAGA_OP_UNDO ||
			(c->op == SAGA_OP_CLAIM && c->target == SAGA_OP_UNDO);

		call->place = place_of(live, c->node, undo);
		place_of(live, c->node, false);	/* it is looked for by its undo */
		call->local = c->op != SAGA_OP_CLAIM &&
			(undo ? node->compensation_local : node->action_local);
	}
	call->open = true;
	call->epoch = epoch;
	call->need = nlog;
	CHECK(!is_awaited(call), "%d %s is called while it is out", c->node,
		  saga_op_name(c->op));
	check_call(c);
	if (c->op == SAGA_OP_UNDO && !places[call->place].ordered)
	{
		places[call->place].ordered = true;
		check_undo_order(c->node);
	}
	if (c->node == SAGA_NODE_ON_STUCK)
		cov[COV_ON_STUCK]++;
	outbox[noutbox++] = ncalls++;
}

/* After decide() or resume(): write, send, check. */
static void
take_decision(void)
{
	ndecisions++;
	for (int i = 0; i < out.nrecords; i++)
		take_record(&out.records[i]);
	if (out.nrecords > 0)
		decision_end[nlog - 1] = true;
	for (int i = 0; i < out.ncommands; i++)
		take_command(&out.commands[i]);
	if (live->nsteps < 100 || chance(50))
		compare_states(live, fold);
	CHECK(live->seq == fold->seq && live->state == fold->state,
		  "the fold differs in its state");
	if (out.ignored && verbose)
		trace("    ignored: %s", out.ignored);
	if (live->nheld > 0 && live->direction == SAGA_FORWARD)
		cov[COV_HELD]++;
	cov[COV_WAITING] += live->state == SAGA_WAITING;
	if (!SAGA_STATE_ENDED(live->state))
		check_in_flight();
	else
		CHECK(out.ncommands == 0 ||
			  out.commands[out.ncommands - 1].kind == SAGA_CMD_ENDED,
			  "the last command of an ended saga does not say so");
	if (nflushed == nlog || chance(600))
		flush();
	else
		send_allowed();
}

void
decide(SagaEvent *event)
{
	event->random = rnd_share();
	out.nrecords = 0;
	out.ncommands = 0;
	saga_machine_decide(live, event, now, &out);
	take_decision();
}

SagaEvent
make_event(SagaEventKind kind)
{
	SagaEvent	event;

	memset(&event, 0, sizeof(event));
	event.kind = kind;
	event.node = SAGA_NO_NODE;
	return event;
}

static void
resume_saga(void)
{
	trace("  resume");
	out.nrecords = 0;
	out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	take_decision();
}

static void
feed_outcome(int32 node, SagaOp op)
{
	SagaEvent	event = make_event(SAGA_EVENT_ANSWER);

	cov[COV_OUTCOME_FED]++;
	if (live->seq == 0)
		cov[COV_OUTCOME_FIRST]++;
	event.node = node;
	event.op = op;
	event.answer = SAGA_ANSWER_DONE;
	trace("  outcome found: %d %s", node, saga_op_name(op));
	decide(&event);
}

static bool
is_recorded_done(int32 node, SagaOp op)
{
	const SagaStep *s;

	if (op == SAGA_OP_HOOK)
		return SAGA_STATE_ENDED(live->state);
	s = &live->steps[node];
	return op == SAGA_OP_ACTION ? s->happened : s->status == SAGA_STEP_UNDONE;
}

/* A new saga. */
void
new_coordinator(SagaTime saga_deadline)
{
	nlog = nflushed = nheavy = 0;
	ncalls = noutbox = 0;
	epoch = 0;
	deadline = saga_deadline;
	fold_log();
}

void
fold_log(void)
{
	reset_pool(&out_arena);
	memset(&out, 0, sizeof(out));
	out.arena = &out_arena;
	reset_pool(&live_arena);
	reset_pool(&fold_arena);
	forget_places();
	live = saga_machine_create(&graph, deadline, &live_arena);
	fold = saga_machine_create(&graph, deadline, &fold_arena);
	memset(went_back, 0, sizeof(bool) * (size_t) Max(fold->nsteps, 1));
	for (int i = 0; i < nplaces; i++)
		places[i].intent = 0;
	for (int i = 0; i < nlog; i++)
	{
		const SagaRecord *r = &records[i];

		CHECK(saga_machine_apply(live, r),
			  "the log cannot be folded at record %d", r->seq);
		fold_record(r);
		note_record(r, i);
	}
	compare_states(live, fold);
	check_counts(fold);
}

/* Inbox rows whose turn was lost are there again. */
static void
return_inbox(void)
{
	for (int i = 0; i < ninbox; i++)
		if (inbox[i].taken_at > nlog)
		{
			inbox[i].taken_at = 0;
			cov[COV_REDELIVERED]++;
			post(now, MSG_INBOX, i, SAGA_ANSWER_DONE);
		}
}

static void
recover(void)
{
	for (int i = ncalls - 1; i >= 0 && calls[i].epoch == epoch; i--)
		if (calls[i].sent && calls[i].open && !calls[i].local &&
			calls[i].op == SAGA_OP_ACTION)
			places[calls[i].place].unknown = true;
	epoch++;
	noutbox = 0;
	nheavy = 0;
	return_inbox();
	fold_log();
	for (int undo = 0; undo < 2; undo++)
		for (int i = 0; i < live->nsteps; i++)
			if (places[place_of(live, i, undo)].outcome_row &&
				!is_recorded_done(i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION))
				feed_outcome(i, undo ? SAGA_OP_UNDO : SAGA_OP_ACTION);
	if (hook_row && !is_recorded_done(SAGA_NODE_END, SAGA_OP_HOOK))
		feed_outcome(SAGA_NODE_END, SAGA_OP_HOOK);
	if (live->seq == 0)
	{
		SagaEvent	event = make_event(SAGA_EVENT_START);

		decide(&event);
		return;
	}
	resume_saga();
}

void
crash(void)
{
	int			cut = chance(500) ? nflushed : nflushed + rnd(nlog - nflushed + 1);

	/* mostly a decision is lost as a whole, as one transaction is */
	if (chance(700))
		while (cut > nflushed && !decision_end[cut - 1])
			cut--;
	else if (cut > 0 && !decision_end[cut - 1])
		cov[COV_TORN_DECISION]++;
	trace("CRASH, of %d records %d remain", nlog, cut);
	cov[COV_CRASH]++;
	if (cut < nlog)
		cov[COV_TAIL_LOST]++;
	nlog = cut;
	nflushed = cut;
	recover();
	if (chance(150) && !SAGA_STATE_ENDED(live->state))
	{
		trace("CRASH again");
		cov[COV_CRASH_IN_RECOVERY]++;
		if (nlog > nflushed && chance(500))
			nlog = nflushed;
		nflushed = nlog;
		recover();
	}
}

/* A saga with nothing out leaves the memory and comes back. */
void
evict(void)
{
	if (!saga_machine_may_evict(live))
		return;
	flush();
	trace("evicted and reloaded");
	cov[COV_CLEAN_RELOAD]++;
	fold_log();
	live->clean = true;
	resume_saga();
}

/* ------------------------------------------------------- what arrives */

static void
deliver(int id, SagaAnswerKind answer, int64 value)
{
	Call	   *call = &calls[id];
	SagaEvent	event = make_event(SAGA_EVENT_ANSWER);
	bool		stale = !call->open;
	bool		local_truth = call->local && call->op != SAGA_OP_EVAL &&
		answer == SAGA_ANSWER_DONE;

	if (call->epoch != epoch)
		return;

	/*
	 * The one thing a coordinator must not do is take an earlier call's "no"
	 * for that of the call that is out.
	 */
	if (stale)
	{
		if (!local_truth && answer != SAGA_ANSWER_DONE && is_awaited(call))
			return;
		if ((call->op == SAGA_OP_CLAIM || call->op == SAGA_OP_EVAL) &&
			is_awaited(call))
			return;
		cov[COV_STALE_ANSWER]++;
	}
	if (answer == SAGA_ANSWER_UNKNOWN)
	{
		if (stale)
			return;
		cov[COV_TIMEOUT]++;
		call->timed_out = true;
		if (call->op == SAGA_OP_ACTION)
			places[call->place].unknown = true;
	}
	event.node = call->node;
	event.op = call->op;
	event.answer = answer;
	event.value = value;
	if (answer != SAGA_ANSWER_DONE && !honest && chance(50))
	{
		event.free = true;
		cov[COV_FREE_ANSWER]++;
	}
	if (answer == SAGA_ANSWER_TRANSIENT && chance(100))
	{
		event.retry_after = rnd(200) * SAGA_SECOND;
		cov[COV_RETRY_AFTER]++;
	}
	cov_answer[call->op][answer]++;
	if (call->op == SAGA_OP_CLAIM && !stale)
		cov[answer == SAGA_ANSWER_DONE ? COV_CLAIM_DONE :
			answer == SAGA_ANSWER_REFUSED ? COV_CLAIM_REFUSED :
			COV_CLAIM_FAILED]++;
	trace("answer%s: %d (%s) %s %s %lld", stale ? " (stale)" : "", call->node,
		  step_name(live, call->node), saga_op_name(call->op),
		  saga_answer_name(answer), (long long) value);
	if (answer == SAGA_ANSWER_ACCEPTED && !stale)
		places[call->place].alive = now;
	/* an answer is that of the operation, whichever call brought it */
	close_calls(call->node, call->op);
	decide(&event);
	if (!honest && chance(20) && !is_awaited(call))
	{
		trace("answer again");
		cov[COV_STALE_ANSWER]++;
		decide(&event);
	}
}

/* The step that a place belongs to, as the coordinator finds it: by name. */
static int32
step_by_name(const Place *p)
{
	int32		step = saga_machine_find_step(live, p->name);

	/* a name without "~" means the newest take: look for exactly this one */
	while (step != SAGA_NO_NODE &&
		   strcmp(step_name(live, step), p->name) != 0)
		step = live->steps[step].replaces >= 0 ? live->steps[step].replaces :
			SAGA_NO_NODE;
	return step;
}

static void
read_inbox(Inbox *row)
{
	SagaEvent	event = make_event(row->kind);

	if (row->taken_at > 0 || SAGA_STATE_ENDED(live->state))
		return;
	event.value = row->value;
	if (row->kind == SAGA_EVENT_COMPLETED)
	{
		const Place *p = &places[row->place];

		event.node = step_by_name(p);
		if (event.node == SAGA_NO_NODE)
		{
			row->taken_at = Max(nlog, 1);
			return;
		}
		event.op = p->undo ? SAGA_OP_UNDO : SAGA_OP_ACTION;
		event.answer = row->answer;
		cov[COV_OVERTOOK] += live->steps[event.node].in_flight;
		trace("completed: %s %s %s", p->name, saga_op_name(event.op),
			  saga_answer_name(row->answer));
	}
	else
		trace("signal %d", (int) row->value);
	/* the record that it causes comes first; a torn decision keeps it */
	row->taken_at = nlog + 1;
	decide(&event);
	if (out.nrecords == 0)
		row->taken_at = Max(nlog, 1);
}

static void
heartbeat(Place *p)
{
	SagaEvent	event = make_event(SAGA_EVENT_HEARTBEAT);

	event.node = step_by_name(p);
	event.op = p->undo ? SAGA_OP_UNDO : SAGA_OP_ACTION;
	if (p->key != KEY_ACCEPTED || event.node == SAGA_NO_NODE)
		return;
	trace("heartbeat: %s", p->name);
	decide(&event);
	if (out.ignored == NULL)
	{
		cov[COV_HEARTBEAT]++;
		/* what is not logged may be lost, and is granted again */
		if (nflushed == nlog)
			p->alive = now;
	}
	if (chance(700))
		post(now + rnd(40) * SAGA_SECOND, MSG_HEARTBEAT,
			 (int) (p - places), SAGA_ANSWER_DONE);
}

void
handle_message(Message m)
{
	Call	   *call = &calls[m.id];
	SagaAnswerKind answer;

	switch ((MessageKind) m.kind)
	{
		case MSG_EXECUTE:
		case MSG_SILENT:
			/* executors go with the coordinator; see recover() */
			if (call->local && (call->epoch != epoch ||
								call->node >= live->nsteps))
				return;
			answer = execute(call, &m.value);
			if (m.kind == MSG_EXECUTE)
			{
				post(delay(), MSG_ANSWER, m.id, answer);
				messages[nmessages - 1].value = m.value;
			}
			if (answer == SAGA_ANSWER_DONE && !call->local && !honest &&
				chance(20 * fault_level))
			{
				/* delivered twice: the key is found, the answer the same */
				cov[COV_DUPLICATE]++;
				CHECK(call->op == SAGA_OP_CLAIM ||
					  places[call->place].key == KEY_DONE,
					  "a key is not kept");
				post(delay(), MSG_ANSWER, m.id, answer);
			}
			return;
		case MSG_ANSWER:
			deliver(m.id, m.answer, m.value);
			return;
		case MSG_LOST:
			if (call->open && call->epoch == epoch)
			{
				SagaEvent	event = make_event(SAGA_EVENT_LOST);

				trace("lost: %d %s", call->node, saga_op_name(call->op));
				cov[COV_LOST_CALL]++;
				call->open = false;
				event.node = call->node;
				event.op = call->op;
				if (!call->local && call->op == SAGA_OP_ACTION)
					places[call->place].unknown = true;
				decide(&event);
			}
			return;
		case MSG_COMPLETE:
			complete(m.id);
			return;
		case MSG_INBOX:
			read_inbox(&inbox[m.id]);
			return;
		case MSG_HEARTBEAT:
			heartbeat(&places[m.id]);
			return;
	}
}
