/*
 * machine_sim.c
 *		Random sagas against a hostile world: the state machine, its fold and
 *		its recovery, checked by what the world has seen.
 *
 *		machine_sim [SEED [FIRST [COUNT]]] [-v]
 *
 * Built by tools/sim without the server; nothing else uses it.  It must know
 * the machine only by machine.h: the promises are judged by the effects at the
 * participants, not by the machine's opinion of them.
 *
 * Every saga has its own random sequence, made from SEED and its number, so
 * that "machine_sim SEED NUMBER 1 -v" repeats one alone and prints all that
 * happened; a failure does so by itself.
 *
 * The world: a coordinator with a log whose tail can be lost (this file);
 * local calls, whose effect and outcome row share a commit; participants with
 * a barrier, to which calls are sent once their records are flushed, from
 * which answers are lost, late, doubled or never given, and which may take a
 * call on and answer it much later (sim_world.c); signals, crashes, operators,
 * clocks that jump forward.  After a while the world turns honest, and every
 * saga must end, or wait for an operator and say why (sim_check.c).
 */
#include <signal.h>

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
static int	chaos;				/* of everything but participants, 1 to 8 */

static int64 cov_record[SAGA_RECORD_REOPENED + 1];
static int64 cov_state[SAGA_TERMINATED + 1];
static int64 cov_cause[SAGA_CAUSE_OPERATOR + 1];
static int64 cov_reason[SAGA_STUCK_HOOK_FAILS + 1];
static int64 cov_answer[SAGA_OP_EVAL + 1][SAGA_ANSWER_ACCEPTED + 1];
static int64 cov_verb[SAGA_VERB_UNDO_COMPLETED + 1][2];
static int64 ndecisions;
static int64 nrecords_total;

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

static void
flush(void)
{
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
	if (c->op == SAGA_OP_UNDO && c->attempt == 1)
		check_undo_order(c->node);
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

static void
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

static void
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
static void
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
	decide(&event);
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

static void
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

/* ------------------------------------------------------- the operator */

static void
use_verb(SagaVerb verb, int32 node, bool force)
{
	SagaEvent	event = make_event(SAGA_EVENT_VERB);
	bool		undo = node >= 0 && live->direction == SAGA_UNDO &&
		(live->back_to == SAGA_NO_NODE || live->steps[node].region);
	const char *refusal = saga_machine_verb_refusal(live, verb, node, force);

	event.verb = verb;
	event.node = node;
	event.force = force;
	event.value = verb == SAGA_VERB_BREAKPOINT ? chance(700) :
		chance(300) ? SAGA_NEVER : now + rnd(300) * SAGA_SECOND;
	trace("verb: %s %d (%s)%s", saga_verb_name(verb), node,
		  step_name(live, node), force ? " force" : "");
	if (force && refusal == NULL)
	{
		cov[COV_FORCED]++;
		if (verb == SAGA_VERB_SKIP_STEP && node >= 0)
			places[place_of(live, node, undo)].forced = true;
		if (verb == SAGA_VERB_TERMINATE)
			for (int i = 0; i < nplaces; i++)
				places[i].forced = true;
	}
	decide(&event);
	cov_verb[verb][out.ignored != NULL]++;
	CHECK(out.ignored == refusal, "verb %s: %s, but %s",
		  saga_verb_name(verb), refusal ? refusal : "(accepted)",
		  out.ignored ? out.ignored : "(accepted)");
}

static void
use_random_verb(void)
{
	static const uint8 verbs[] = {
		SAGA_VERB_CANCEL, SAGA_VERB_CANCEL, SAGA_VERB_PAUSE,
		SAGA_VERB_PAUSE, SAGA_VERB_RESUME, SAGA_VERB_RESUME,
		SAGA_VERB_RETRY_STEP, SAGA_VERB_RETRY_STEP, SAGA_VERB_RETRY_STEP,
		SAGA_VERB_SKIP_STEP, SAGA_VERB_SKIP_STEP, SAGA_VERB_SKIP_STEP,
		SAGA_VERB_SKIP_STEP, SAGA_VERB_TERMINATE, SAGA_VERB_RERUN_FROM,
		SAGA_VERB_RERUN_FROM, SAGA_VERB_RERUN_FROM, SAGA_VERB_SET_DEADLINE,
		SAGA_VERB_BREAKPOINT, SAGA_VERB_BREAKPOINT, SAGA_VERB_UNDO_COMPLETED
	};
	SagaVerb	verb = verbs[rnd(21)];
	int32		node = SAGA_NO_NODE;

	if (verb == SAGA_VERB_RETRY_STEP || verb == SAGA_VERB_SKIP_STEP ||
		verb == SAGA_VERB_RERUN_FROM || verb == SAGA_VERB_BREAKPOINT)
		node = rnd(live->nsteps + 1) - 1;
	if (verb == SAGA_VERB_RERUN_FROM && live->nsteps > 300)
		return;
	use_verb(verb, node, chance(150));
}

/* Nothing moves any more: there must be a reason, and something that helps. */
static void
help(int64 round)
{
	int32		node = live->stuck_node;

	CHECK(live->in_flight == 0, "quiet with %d calls out", live->in_flight);
	if (live->paused)
	{
		use_verb(SAGA_VERB_RESUME, SAGA_NO_NODE, false);
		return;
	}
	if (live->state == SAGA_WAITING)
	{
		bool		helped = false;

		/* signals come, and what was accepted is done after all */
		for (int32 i = 0; i < live->nsteps && !helped; i++)
			if (live->steps[i].status == SAGA_STEP_AWAITING &&
				!live->steps[i].replaced)
			{
				put_inbox(SAGA_EVENT_SIGNAL, -1, SAGA_ANSWER_DONE,
						  nodes[live->steps[i].node].signal);
				helped = true;
			}
		/* ... or, sent only once, was refused by a claim nobody heard of */
		for (int32 i = 0; i < live->nsteps && !helped; i++)
			if (live->steps[i].status == SAGA_STEP_ACCEPTED &&
				nodes[live->steps[i].node].at_most_once &&
				places[place_of(live, i, false)].key == KEY_REFUSED)
			{
				use_verb(SAGA_VERB_SKIP_STEP, i, true);
				helped = true;
			}
		for (int i = 0; i < nplaces; i++)
			if (places[i].key == KEY_ACCEPTED && !places[i].completing)
			{
				complete(i);
				helped = true;
			}
		CHECK(helped, "waiting for nothing");
		return;
	}
	CHECK(live->state == SAGA_STUCK, "quiet, but %s",
		  saga_state_name(live->state));
	CHECK(live->stuck_reason != SAGA_STUCK_NONE, "stuck without a reason");
	cov[COV_OPERATOR_NEEDED]++;
	if (live->stuck_reason == SAGA_STUCK_DEADLINE)
		use_verb(SAGA_VERB_RESUME, SAGA_NO_NODE, false);
	else if (round % 3 == 0)
		use_verb(SAGA_VERB_RETRY_STEP, node, false);
	else if (round % 3 == 1 || chance(900))
		use_verb(SAGA_VERB_SKIP_STEP, node, false);
	else
		use_verb(SAGA_VERB_TERMINATE, SAGA_NO_NODE, false);
	CHECK(out.ignored == NULL, "no verb helps: %s", out.ignored);
}

/* ------------------------------------------------------- one saga */

static int
earliest_message(void)
{
	int			best = -1;

	for (int i = 0; i < nmessages; i++)
		if (best < 0 || messages[i].at < messages[best].at)
			best = i;
	return best;
}

static Message
take_message(int i)
{
	Message		m = messages[i];

	messages[i] = messages[--nmessages];
	return m;
}

/* Let the next thing happen; false if there is none. */
static bool
step_world(void)
{
	int			i = earliest_message();
	SagaTime	due = saga_machine_next_due(live);

	if (i >= 0 && messages[i].at <= due)
	{
		Message		m = take_message(i);

		now = Max(now, m.at);
		handle_message(m);
		return true;
	}
	if (due != SAGA_NEVER)
	{
		SagaEvent	event = make_event(SAGA_EVENT_TIMER);

		now = Max(now, due);
		trace("timer");
		decide(&event);
		CHECK(saga_machine_next_due(live) > now, "the timer is due at once");
		return true;
	}
	if (nflushed < nlog || noutbox > 0)
	{
		flush();
		return true;
	}
	return false;
}

static void
disturb(void)
{
	int			what = rnd(1000 / chaos);

	if (what < 30)
		use_random_verb();
	else if (what < 45)
		crash();
	else if (what < 52)
		evict();
	else if (what < 60)
	{
		cov[COV_CLOCK_JUMP]++;
		now += rnd(600) * SAGA_SECOND;
	}
	else if (what < 75)
		put_inbox(SAGA_EVENT_SIGNAL, -1, SAGA_ANSWER_DONE, rnd(2));
	else if (what < 80)
	{
		SagaEvent	event = make_event(rnd(SAGA_EVENT_SIGNAL + 1));

		event.node = -4 - rnd(2) * 1000;
		event.op = rnd(SAGA_OP_EVAL + 1);
		event.answer = rnd(SAGA_ANSWER_ACCEPTED + 1);
		event.value = -1 - rnd(5);
		if (event.kind != SAGA_EVENT_TIMER && event.kind != SAGA_EVENT_VERB)
		{
			trace("nonsense");
			decide(&event);
			CHECK(out.nrecords == 0, "nonsense has an effect");
		}
	}
}

/* From where it is to its end. */
static void
drive(int budget)
{
	int64		helped = 0;

	for (int n = 0; !SAGA_STATE_ENDED(live->state); n++)
	{
		CHECK(n < MAX_EVENTS, "the saga does not end");
		if (!honest && n >= budget)
		{
			trace("the world is honest");
			honest = true;
		}
		if (!honest)
			disturb();
		if (SAGA_STATE_ENDED(live->state))
			break;
		if (step_world())
			continue;
		if (!honest && chance(700))
			use_random_verb();
		else if (!honest)
			honest = true;
		else
			help(helped++);
	}
}

static void
check_end(void)
{
	flush();
	cov_state[live->state]++;
	cov_cause[live->cause]++;
	check_silence();

	/* what was on its way arrives, and must do no harm */
	while (nmessages > 0)
	{
		Message		m = take_message(earliest_message());

		now = Max(now, m.at);
		if ((m.kind == MSG_EXECUTE || m.kind == MSG_SILENT) &&
			!calls[m.id].local)
			execute(&calls[m.id], &m.value);
		else if (m.kind == MSG_COMPLETE && places[m.id].key == KEY_ACCEPTED &&
				 live->state == SAGA_TERMINATED)
			complete(m.id);
	}
	check_ended();
	nlog = nflushed;
	fold_log();
	CHECK(SAGA_STATE_ENDED(live->state), "the log does not end");
	out.nrecords = out.ncommands = 0;
	saga_machine_resume(live, now, &out);
	CHECK(out.nrecords == 0 && out.ncommands == 0,
		  "recovery of an ended saga does something");
}

/* A parent undoes the saga though it has completed. */
static void
undo_completed(void)
{
	flush();
	if (chance(500))
	{
		trace("loaded again");
		epoch++;
		fold_log();
	}
	if (saga_machine_verb_refusal(live, SAGA_VERB_UNDO_COMPLETED,
								  SAGA_NO_NODE, false) != NULL)
	{
		use_verb(SAGA_VERB_UNDO_COMPLETED, SAGA_NO_NODE, false);
		return;
	}
	honest = chance(300);
	use_verb(SAGA_VERB_UNDO_COMPLETED, SAGA_NO_NODE, false);
	drive(5 + rnd(40));
}

static void
run_saga(void)
{
	SagaEvent	event = make_event(SAGA_EVENT_START);
	int			budget;

	make_world();
	nlog = nflushed = nheavy = 0;
	ncalls = noutbox = 0;
	epoch = 0;
	chaos = chance(200) ? 1 + rnd(8) : 1;
	deadline = chance(250) ? now + rnd(300) * SAGA_SECOND : SAGA_NEVER;
	fold_log();
	budget = 5 + rnd(chance(200) ? 200 : 50);
	if (chance(20))
		use_random_verb();		/* before it has started */
	decide(&event);
	drive(budget);
	if (live->state == SAGA_COMPLETED && chance(200))
		undo_completed();
	check_end();
	if (chance(30))
		fuzz_fold();
}

/* ------------------------------------------------------- report */

static const char *const cov_names[COV_COUNT] = {
	"crash", "log tail lost", "decision torn by a crash",
	"crash in recovery", "outcome fed at recovery", "outcome before start",
	"evicted and reloaded", "time-out", "effect after its time-out",
	"duplicate execution", "stale answer", "worker lost",
	"conditional undo ran", "conditional undo found nothing",
	"claim: done", "claim: refused", "claim: failed", "pivot claimed",
	"failure held for the pivot", "clock jump", "call cancelled",
	"free answer", "retry-after", "forced verb", "on_stuck called",
	"operator needed at the end", "big graph", "empty graph",
	"fuzz record accepted", "fuzz record refused",
	"body in a body", "completed before accepted", "accepted, then failed",
	"inbox row read again", "heartbeat", "signal before its step",
	"signal awaited", "at most once, unknown",
	"went back to a save-point", "... and then undone wholly",
	"... while others began", "rerun_from", "replaced take undone",
	"step of a body undone", "condition false, or first case",
	"loop at its bound", "seen waiting", "breakpoint met",
	"completed, then undone", "undo accepted",
};

static int	missing;

static void
show(const char *group, const char *name, int64 n, bool required)
{
	printf("  %-10s %-32s %12lld%s\n", group, name, (long long) n,
		   n == 0 && required ? "   NEVER" : "");
	missing += n == 0 && required;
}

static bool
answer_is_possible(int op, int answer)
{
	switch (op)
	{
		case SAGA_OP_HOOK:
		case SAGA_OP_EVAL:
			return answer < SAGA_ANSWER_UNKNOWN;
		case SAGA_OP_CLAIM:
			return answer != SAGA_ANSWER_ACCEPTED;
		default:
			return true;
	}
}

static void
report(int64 count, double seconds)
{
	printf("%lld sagas in %.1f s: %.2f million decisions/s, %.2f million"
		   " records/s, world and checks included\n", (long long) count,
		   seconds, (double) ndecisions / seconds / 1e6,
		   (double) nrecords_total / seconds / 1e6);
	for (int i = SAGA_COMPLETED; i <= SAGA_TERMINATED; i++)
		show("end", saga_state_name(i), cov_state[i], true);
	for (int i = 0; i <= SAGA_RECORD_REOPENED; i++)
		show("record", saga_record_name(i), cov_record[i], true);
	for (int i = SAGA_CAUSE_DECLINED; i <= SAGA_CAUSE_OPERATOR; i++)
		show("cause", saga_cause_name(i), cov_cause[i],
			 i != SAGA_CAUSE_ABORTED);
	for (int i = SAGA_STUCK_DECLINED; i <= SAGA_STUCK_HOOK_FAILS; i++)
		show("stuck", saga_stuck_reason_name(i), cov_reason[i], true);
	for (int op = 0; op <= SAGA_OP_EVAL; op++)
		for (int i = 0; i <= SAGA_ANSWER_ACCEPTED; i++)
			if (answer_is_possible(op, i))
				show(saga_op_name(op), saga_answer_name(i), cov_answer[op][i],
					 true);
	for (int i = 0; i <= SAGA_VERB_UNDO_COMPLETED; i++)
	{
		show("verb", saga_verb_name(i), cov_verb[i][0], true);
		show("ignored", saga_verb_name(i), cov_verb[i][1], true);
	}
	for (int i = 0; i < COV_COUNT; i++)
		show("world", cov_names[i], cov[i], true);
}

/* An assertion of the machine is a failure like others. */
static void
on_abort(int sig)
{
	fail("an assertion of the machine");
}

int
main(int argc, char **argv)
{
	int64		args[3] = {0, 0, 300000};
	int			nargs = 0;
	struct timespec t0,
				t1;

	args[0] = (int64) time(NULL);
	for (int i = 1; i < argc; i++)
	{
		if (strcmp(argv[i], "-v") == 0)
			verbose = true;
		else if (nargs < 3)
			args[nargs++] = strtoll(argv[i], NULL, 10);
	}
	seed = (uint64) args[0];
	printf("seed %llu, sagas %lld to %lld\n", (unsigned long long) seed,
		   (long long) args[1], (long long) (args[1] + args[2] - 1));
	fflush(stdout);
	make_pools();
	signal(SIGABRT, on_abort);

	clock_gettime(CLOCK_MONOTONIC, &t0);
	if (sigsetjmp(failed, 1))
	{
		/* once more, to see how it came to that */
		if (verbose || number < args[1])
			return 1;
		verbose = true;
		run_saga();
		printf("(it did not fail again)\n");
		return 1;
	}
	number = args[1] - 1;
	check_graph_faults();
	check_names();
	for (number = args[1]; number < args[1] + args[2]; number++)
		run_saga();
	clock_gettime(CLOCK_MONOTONIC, &t1);
	report(args[2], (double) (t1.tv_sec - t0.tv_sec) +
		   (double) (t1.tv_nsec - t0.tv_nsec) / 1e9);
	measure();
	if (missing > 0 && args[2] >= 100000)
	{
		printf("FAILED  %d things never happened\n", missing);
		return 1;
	}
	printf("ok\n");
	return 0;
}
