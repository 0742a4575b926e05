/*
 * sim_world.c
 *		The world around the simulated machine: chance, memory, random graphs,
 *		the network, executors and participants (see machine_sim.c).
 *
 * Runs of steps are known here by their names, as participants know them: a
 * crash that loses the end of the log may give their numbers to others.
 */
#include "sim.h"

/* ------------------------------------------------------- randomness */

uint64		rng;

uint64
next_random(void)
{
	uint64		z = (rng += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0 .. n - 1 */
int
rnd(int n)
{
	return (int) (((next_random() >> 32) * (uint64) n) >> 32);
}

bool
chance(int per_mille)
{
	return rnd(1000) < per_mille;
}

double
rnd_share(void)
{
	return (double) (next_random() >> 11) / 9007199254740992.0;
}

/* ------------------------------------------------------- memory */

typedef struct Pool
{
	char	   *start;
	size_t		used;
	size_t		size;
} Pool;

static Pool pools[4];
SagaArena	graph_arena,
			live_arena,
			fold_arena,
			out_arena;

static void *
pool_alloc(SagaArena *arena, size_t size)
{
	Pool	   *pool = arena->context;
	void	   *p;

	size = (size + 15) & ~(size_t) 15;
	if (pool->used + size > pool->size)
	{
		fprintf(stderr, "machine_sim: pool of %zu bytes is full\n",
				pool->size);
		exit(2);
	}
	p = pool->start + pool->used;
	pool->used += size;
	memset(p, 0, size);
	return p;
}

void
make_pools(void)
{
	SagaArena  *arenas[] = {&graph_arena, &live_arena, &fold_arena, &out_arena};

	for (int i = 0; i < 4; i++)
	{
		pools[i].size = (size_t) 1 << 26;
		pools[i].start = malloc(pools[i].size);
		if (pools[i].start == NULL)
			exit(2);
		arenas[i]->alloc = pool_alloc;
		arenas[i]->context = &pools[i];
	}
}

void
reset_pool(SagaArena *arena)
{
	((Pool *) arena->context)->used = 0;
}

/* ------------------------------------------------------- state */

SagaNode	nodes[MAX_NODES];
SagaGraph	graph;
uint64		reach[MAX_NODES];
bool		declines[MAX_NODES];
static SagaScope scopes[MAX_NODES];
static int32 deps[MAX_NODES][MAX_DEPS];
static char names[MAX_NODES][8];
static bool waived[MAX_NODES];
static const char *signals[] = {"red", "green"};

Place		places[MAX_PLACES];
int			nplaces;
static int	place_hash[4096];
static int	place_by_step[MAX_STEPS][2];	/* 1 + number */
static int	nplace_by_step;
Inbox		inbox[MAX_INBOX];
int			ninbox;
Message		messages[MAX_MESSAGES];
int			nmessages;
bool		hook_row;
int			hook_effects[2];
int			hook_fail;

SagaTime	now;
bool		honest;
bool		verbose;
int			fault_level;
uint64		seed;
int64		number;
sigjmp_buf	failed;
int64		cov[COV_COUNT];

/* ------------------------------------------------------- trace */

void
trace(const char *format,...)
{
	va_list		args;

	if (!verbose)
		return;
	printf("%12.3f  ", (double) (now % (SAGA_SECOND * 100000000)) / 1e6);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
}

void
fail(const char *format,...)
{
	va_list		args;

	printf("\nFAILED  seed %llu, saga %lld: ", (unsigned long long) seed,
		   (long long) number);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	siglongjmp(failed, 1);
}

/* Good until the fourth call from now. */
const char *
step_name(const SagaState *state, int32 step)
{
	static char bufs[4][48];
	static int	turn;

	if (step < 0 || step >= state->nsteps)
		return "-";
	turn = (turn + 1) % 4;
	return saga_machine_step_name(state, step, bufs[turn], sizeof(bufs[0]));
}

void
trace_record(const SagaRecord *r)
{
	if (!verbose)
		return;
	trace("    #%d %s %d (%s) %s answer=%s maybe=%d attempt=%d value=%lld"
		  " due=%.3f %s %s",
		  r->seq, saga_record_name(r->kind), r->node, step_name(live, r->node),
		  saga_op_name(r->op), saga_answer_name(r->answer), r->maybe,
		  r->attempt, (long long) r->value,
		  (double) (r->due % (SAGA_SECOND * 100000000)) / 1e6,
		  r->cause ? saga_cause_name(r->cause) : "",
		  r->kind == SAGA_RECORD_ENDED ? saga_state_name(r->state) :
		  r->reason ? saga_stuck_reason_name(r->reason) : "");
}

/* ------------------------------------------------------- places */

/* The numbers of steps mean something else now. */
void
forget_places(void)
{
	memset(place_by_step, 0, sizeof(place_by_step[0]) * (size_t) nplace_by_step);
	nplace_by_step = 0;
}

int
place_of(const SagaState *state, int32 step, bool undo)
{
	const char *name;
	unsigned	h = undo;
	Place	   *p;

	CHECK(step < MAX_STEPS, "too many steps");
	if (place_by_step[step][undo])
		return place_by_step[step][undo] - 1;
	nplace_by_step = Max(nplace_by_step, step + 1);
	name = step_name(state, step);
	for (const char *c = name; *c; c++)
		h = h * 31 + (unsigned char) *c;
	h %= 4096;
	for (int i = place_hash[h]; i > 0; i = places[i - 1].next)
		if (places[i - 1].undo == undo && strcmp(places[i - 1].name, name) == 0)
		{
			CHECK(places[i - 1].node == state->steps[step].node,
				  "the name %s means two nodes", name);
			place_by_step[step][undo] = i;
			return i - 1;
		}
	CHECK(nplaces < MAX_PLACES, "too many places");
	p = &places[nplaces++];
	memset(p, 0, sizeof(*p));
	strcpy(p->name, name);
	p->node = state->steps[step].node;
	p->undo = undo;
	p->fail = chance(60) ? 950 : 60 * fault_level;
	p->broken = chance(20);
	p->callback = chance(200);
	p->next = place_hash[h];
	place_hash[h] = nplaces;
	place_by_step[step][undo] = nplaces;
	return nplaces - 1;
}

/* ------------------------------------------------------- graphs */

static void
make_retry(SagaRetry *retry)
{
	static const int attempts[] = {0, 1, 2, 3, 5};

	retry->max_attempts = attempts[rnd(5)];
	retry->initial_interval = rnd(3) * SAGA_SECOND;
	retry->max_interval = chance(100) ? 0 : 60 * SAGA_SECOND;
	retry->backoff = chance(100) ? 1e30 : 2.0;
	retry->jitter = chance(500) ? 0.2 : 0.0;
}

static SagaNodeKind
random_kind(bool pivot, bool plain)
{
	static const uint8 kinds[] = {SAGA_NODE_SLEEP, SAGA_NODE_SIGNAL,
		SAGA_NODE_SIGNAL, SAGA_NODE_BRANCH, SAGA_NODE_BRANCH, SAGA_NODE_EACH,
		SAGA_NODE_EACH, SAGA_NODE_LOOP, SAGA_NODE_LOOP, SAGA_NODE_SAVEPOINT,
	SAGA_NODE_SAVEPOINT};

	if (pivot)
		return SAGA_NODE_STEP;
	if (chance(40))
		return SAGA_NODE_UNDO;
	return plain || chance(600) ? SAGA_NODE_STEP : kinds[rnd(11)];
}

static void
init_node(int i, SagaNodeKind kind)
{
	SagaNode   *node = &nodes[i];
	bool		acts = kind <= SAGA_NODE_UNDO;

	memset(node, 0, sizeof(*node));
	snprintf(names[i], sizeof(names[i]), "n%d", i);
	node->name = names[i];
	node->deps = deps[i];
	node->kind = kind;
	node->has_compensation = kind == SAGA_NODE_UNDO ||
		(acts && chance(850));
	node->action_local = chance(400);
	node->compensation_local = chance(100) ? chance(500) : node->action_local;
	node->on_failure = chance(700) ? SAGA_FAILURE_DEFAULT : rnd(4);
	node->has_condition = chance(100);
	node->body = -1;
	node->branch = -1;
	node->at_most_once = chance(50);
	node->max_parallel = rnd(4);
	node->has_while = chance(700);
	node->max_iterations = !node->has_while || chance(500) ? 1 + rnd(4) : 0;
	node->signal = rnd(2);
	node->timeout = chance(600) ? (1 + rnd(60)) * SAGA_SECOND : 0;
	node->timeout_continue = chance(500);
	node->max_tries = 1 + rnd(4);
	make_retry(&node->retry);
	make_retry(&node->undo_retry);
	declines[i] = chance(60);
}

static void
add_dep(int node, int dep)
{
	if (nodes[node].ndeps < MAX_DEPS)
		nodes[node].deps[nodes[node].ndeps++] = dep;
}

/* A save-point among what comes before the node, if there is one. */
static int
find_savepoint(int i)
{
	for (int at = i; at >= 0;)
	{
		int			queue[64];
		int			head = 0,
					tail = 0;

		queue[tail++] = at;
		while (head < tail)
		{
			const SagaNode *node = &nodes[queue[head++]];

			for (int k = 0; k < node->ndeps && tail < 60; k++)
			{
				if (nodes[node->deps[k]].kind == SAGA_NODE_SAVEPOINT)
					return node->deps[k];
				queue[tail++] = node->deps[k];
			}
		}
		for (int s = 0, scope = -1; s < graph.nscopes; s++)
		{
			if (at >= scopes[s].first &&
				at < scopes[s].first + scopes[s].nnodes)
				scope = s;
			if (s < graph.nscopes - 1)
				continue;
			at = -1;
			for (int k = 0; k < graph.nnodes; k++)
				if (scope > 0 && nodes[k].body == scope)
					at = k;
		}
	}
	return -1;
}

/*
 * n nodes of a scope: each waits for some before it; now and then a branch,
 * whose cases take up the next few.  Nodes are numbered in this order, so that
 * for scope 0 (where numbers must not matter) deps may go anywhere.
 */
static void
make_scope(int scope, int n, int pivot)
{
	int			first = graph.nnodes;
	int			branch = -1,
				left = 0,
				last = -1;		/* of the current case */

	scopes[scope].first = first;
	scopes[scope].nnodes = n;
	graph.nnodes += n;
	for (int i = first; i < first + n; i++)
	{
		int			shape = rnd(10);

		init_node(i, random_kind(i - first == pivot,
								 left > 0 || graph.nscopes > 5));
		nodes[i].pivot = i - first == pivot;
		if (nodes[i].pivot)
		{
			nodes[i].has_compensation = false;
			if (chance(700))
				nodes[i].has_condition = false;
		}
		waived[i] = !nodes[i].has_compensation;
		if (left > 0)
		{
			nodes[i].branch = branch;
			if (last >= 0 && chance(400))
			{
				nodes[i].branch_case = nodes[last].branch_case;
				add_dep(i, last);
			}
			else
			{
				nodes[i].branch_case = rnd(nodes[branch].ncases);
				add_dep(i, branch);
			}
			if (branch > first && chance(100))
				add_dep(i, first + rnd(branch - first));
			last = i;
			if (--left == 0)
				branch = -1 - branch;	/* the next one joins */
			continue;
		}
		if (branch < -1)
		{
			/* what follows waits for the branch and the ends of its cases */
			int			from = -1 - branch;

			add_dep(i, from);
			for (int k = from + 1; k < i; k++)
			{
				bool		sink = true;

				for (int j = k + 1; j < i; j++)
					for (int d = 0; d < nodes[j].ndeps; d++)
						sink &= nodes[j].deps[d] != k;
				if (sink)
					add_dep(i, k);
			}
			branch = -1;
		}
		else if (i > first && shape < 6)
			add_dep(i, i - 1);
		else if (i > first && shape < 8)
			for (int k = rnd(3); k >= 0; k--)
				add_dep(i, first + rnd(i - first));
		if (nodes[i].kind == SAGA_NODE_BRANCH)
		{
			nodes[i].ncases = 1 + rnd(3);
			left = Min(1 + rnd(3), first + n - 1 - i);
			branch = left > 0 ? i : -1;
			last = -1;
		}
	}
}

static void
find_reach(void)
{
	memset(reach, 0, sizeof(reach));
	for (int pass = 0; pass < graph.nnodes; pass++)
		for (int i = 0; i < graph.nnodes; i++)
			for (int k = 0; k < nodes[i].nnext; k++)
				reach[i] |= (UINT64_C(1) << nodes[i].next[k]) |
					reach[nodes[i].next[k]];
}

void
make_graph(void)
{
	int			n = chance(20) ? 0 : chance(20) ? 9 + rnd(14) : 1 + rnd(7);
	int			pivot = n > 0 && chance(450) ? rnd(n) : -1;
	SagaGraphFault fault = {SAGA_GRAPH_OK, 0};

	memset(&graph, 0, sizeof(graph));
	graph.nodes = nodes;
	graph.scopes = scopes;
	graph.nscopes = 1;
	graph.nsignals = 2;
	graph.signals = signals;
	graph.undo_order = rnd(3);
	graph.has_on_completed = chance(300);
	graph.has_on_compensated = chance(300);
	graph.has_on_stuck = chance(300);
	make_scope(0, n, pivot);

	/* bodies, as deep as there is room */
	for (int i = 0; i < graph.nnodes; i++)
	{
		if (nodes[i].kind != SAGA_NODE_EACH && nodes[i].kind != SAGA_NODE_LOOP)
			continue;
		if (graph.nnodes + 4 > MAX_NODES)
			init_node(i, SAGA_NODE_SLEEP);
		else
		{
			nodes[i].body = graph.nscopes++;
			make_scope(nodes[i].body, 1 + rnd(3), -1);
			cov[COV_NESTED] += i >= n;
		}
	}
	for (int i = 0; i < graph.nnodes; i++)
	{
		if (chance(300))
			nodes[i].savepoint = find_savepoint(i);
		else
			nodes[i].savepoint = -1;
		if (nodes[i].savepoint >= 0)
		{
			nodes[i].on_failure = SAGA_FAILURE_GOTO;
			declines[i] |= chance(300);
		}
	}
	reset_pool(&graph_arena);
	CHECK(saga_graph_finish(&graph, waived, &graph_arena, &fault, 1) == 0,
		  "the graph has a fault %d at %d", fault.kind, fault.node);
	find_reach();
	cov[COV_BIG_GRAPH] += n > 8;
	cov[COV_EMPTY_GRAPH] += n == 0;
}

void
make_world(void)
{
	rng = seed * UINT64_C(0xd1342543de82ef95) + (uint64) number;
	next_random();
	now = 700000000 * SAGA_SECOND;
	nplaces = ninbox = nmessages = 0;
	memset(place_hash, 0, sizeof(place_hash));
	honest = false;
	hook_row = false;
	hook_effects[0] = hook_effects[1] = 0;
	hook_fail = chance(100) ? 950 : 100;
	fault_level = rnd(4);
	make_graph();
	if (!verbose)
		return;
	for (int i = 0; i < graph.nnodes; i++)
	{
		printf("node %d: kind %d, scope %d, body %d, branch %d/%d, comp %d,"
			   " local %d/%d, pivot %d, on_failure %d (%d), attempts %d,"
			   " declines %d, cond %d, once %d, parallel %d, while %d, max %d,"
			   " tries %d, after",
			   i, nodes[i].kind, nodes[i].scope, nodes[i].body,
			   nodes[i].branch, nodes[i].branch_case,
			   nodes[i].has_compensation, nodes[i].action_local,
			   nodes[i].compensation_local, nodes[i].pivot,
			   nodes[i].on_failure, nodes[i].savepoint,
			   nodes[i].retry.max_attempts, declines[i],
			   nodes[i].has_condition, nodes[i].at_most_once,
			   nodes[i].max_parallel, nodes[i].has_while,
			   nodes[i].max_iterations, nodes[i].max_tries);
		for (int k = 0; k < nodes[i].ndeps; k++)
			printf(" %d", nodes[i].deps[k]);
		printf("\n");
	}
	printf("undo order %d\n", graph.undo_order);
}

/* ------------------------------------------------------- the network */

void
post(SagaTime at, MessageKind kind, int id, SagaAnswerKind answer)
{
	Message    *m = &messages[nmessages];

	CHECK(nmessages < MAX_MESSAGES, "too many messages");
	nmessages++;
	memset(m, 0, sizeof(*m));
	m->at = at;
	m->kind = kind;
	m->id = id;
	m->answer = answer;
}

SagaTime
delay(void)
{
	return now + 1 + rnd(chance(100) ? 20 * (int) SAGA_SECOND : 20000);
}

void
send_local(int id)
{
	Call	   *call = &calls[id];

	trace("  run locally: %d (%s) %s", call->node, step_name(live, call->node),
		  saga_op_name(call->op));
	call->sent = true;
	if (!honest && chance(30))
		post(delay(), MSG_LOST, id, SAGA_ANSWER_DONE);
	else
		post(delay(), MSG_EXECUTE, id, SAGA_ANSWER_DONE);
}

void
send_remote(int id)
{
	Call	   *call = &calls[id];
	Place	   *p = &places[call->place];
	int			fate = honest ? 999 : rnd(1000);
	int			hostility = 20 * fault_level;

	trace("  send: %d (%s) %s%s%s", call->node, p->name, saga_op_name(call->op),
		  call->op == SAGA_OP_CLAIM && p->undo ? " of undo" : "",
		  call->conditional ? " conditional" : "");
	CHECK(call->op == SAGA_OP_CLAIM || (p->intent > 0 && p->intent <= nflushed),
		  "%s %s is sent before its intent is flushed", p->name,
		  saga_op_name(call->op));
	call->sent = true;
	if (fate < hostility)		/* lost on the way there */
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
	else if (fate < 2 * hostility)	/* on the way back */
	{
		post(delay(), MSG_SILENT, id, SAGA_ANSWER_DONE);
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
	}
	else if (fate < 3 * hostility)	/* arrives when nobody expects it */
	{
		post(now + CALL_TIMEOUT, MSG_ANSWER, id, SAGA_ANSWER_UNKNOWN);
		post(now + CALL_TIMEOUT + rnd(100) * SAGA_SECOND,
			 chance(500) ? MSG_EXECUTE : MSG_SILENT, id, SAGA_ANSWER_DONE);
	}
	else if (fate < 4 * hostility)	/* cannot be sent */
		post(delay(), MSG_ANSWER, id, SAGA_ANSWER_TRANSIENT);
	else if (fate < 4 * hostility + hostility / 2)
	{
		if (chance(500))
			post(delay(), MSG_SILENT, id, SAGA_ANSWER_DONE);
		post(delay(), MSG_LOST, id, SAGA_ANSWER_DONE);
	}
	else
		post(delay(), MSG_EXECUTE, id, SAGA_ANSWER_DONE);
}

void
put_inbox(SagaEventKind kind, int place, SagaAnswerKind answer, int64 value)
{
	Inbox	   *row = &inbox[ninbox];

	CHECK(ninbox < MAX_INBOX, "the inbox is full");
	memset(row, 0, sizeof(*row));
	row->kind = kind;
	row->place = place;
	row->answer = answer;
	row->value = value;

	/* the inbox is read before answers that come after it: see machine.h */
	post(answer != SAGA_ANSWER_DONE || chance(300) ? now : delay(), MSG_INBOX,
		 ninbox++, SAGA_ANSWER_DONE);
}

/* ------------------------------------------------------- participants */

void
act(int place)
{
	Place	   *p = &places[place];

	p->key = KEY_DONE;
	p->effects++;
	trace("  EFFECT: %s %s", p->name, p->undo ? "undo" : "action");
	CHECK(p->effects == 1, "%s: %s has happened twice", p->name,
		  p->undo ? "undo" : "action");
	if (p->undo)
		check_effects_after(place);
}

static SagaAnswerKind
mood(Place *p)
{
	if (!p->undo && declines[p->node] && p->key == KEY_FREE)
		return SAGA_ANSWER_DECLINED;
	if (honest)
		return SAGA_ANSWER_DONE;
	if (p->broken && chance(900))
		return SAGA_ANSWER_BROKEN;
	if (chance(p->fail))
	{
		static const uint8 kinds[] = {SAGA_ANSWER_TRANSIENT,
			SAGA_ANSWER_TRANSIENT, SAGA_ANSWER_TRANSIENT,
		SAGA_ANSWER_DECLINED, SAGA_ANSWER_BROKEN};

		return kinds[rnd(5)];
	}
	return SAGA_ANSWER_DONE;
}

/* The place of the action that this one undoes, by its name. */
static Place *
action_of(const Place *undo)
{
	for (int i = 0; i < nplaces; i++)
		if (!places[i].undo && strcmp(places[i].name, undo->name) == 0)
			return &places[i];
	fail("%s: undo of an action never heard of", undo->name);
	return NULL;
}

/* An expression; now and then nonsense. */
static SagaAnswerKind
evaluate(const Call *call, int64 *value)
{
	const SagaNode *node = &nodes[live->steps[call->node].node];
	bool		many = live->nsteps > 300;

	if (!honest && chance(20 * fault_level))
		return SAGA_ANSWER_DECLINED + rnd(3);
	switch ((SagaEval) call->eval)
	{
		case SAGA_EVAL_CONDITION:
			*value = chance(700);
			break;
		case SAGA_EVAL_CASES:
			*value = rnd(node->ncases + 1) - 1;
			break;
		case SAGA_EVAL_ITEMS:
			*value = many ? rnd(2) : chance(5) ? 40 : rnd(5);
			break;
		case SAGA_EVAL_WHILE:
			*value = chance(honest || many ? 300 : 700);
			break;
		case SAGA_EVAL_TIME:
			*value = now + (rnd(100) - 20) * SAGA_SECOND;
			break;
	}
	if (!honest && call->eval != SAGA_EVAL_TIME && chance(5))
		*value = -7;
	return SAGA_ANSWER_DONE;
}

/* What an executor does; effect and outcome row are one commit. */
static SagaAnswerKind
execute_local(const Call *call, int64 *value)
{
	Place	   *p;
	SagaAnswerKind answer;

	if (call->op == SAGA_OP_EVAL)
		return evaluate(call, value);
	if (call->node == SAGA_NODE_ON_STUCK)
		return honest ? SAGA_ANSWER_DONE : (SagaAnswerKind) rnd(4);
	if (call->node == SAGA_NODE_END)
	{
		if (hook_row)
			return SAGA_ANSWER_DONE;
		if (!honest && chance(hook_fail))
			return SAGA_ANSWER_DECLINED + rnd(3);
		hook_row = true;
		hook_effects[live->direction]++;
		CHECK(hook_effects[live->direction] == 1,
			  "the ending hook has run twice");
		trace("  EFFECT: ending hook");
		return SAGA_ANSWER_DONE;
	}
	p = &places[call->place];
	if (p->outcome_row)
		return SAGA_ANSWER_DONE;
	answer = mood(p);
	if (answer != SAGA_ANSWER_DONE)
		return answer;
	p->outcome_row = true;
	if (call->conditional)
	{
		Place	   *action = action_of(p);

		if (action->key != KEY_DONE)
		{
			action->key = KEY_REFUSED;
			return SAGA_ANSWER_DONE;
		}
	}
	act(call->place);
	return SAGA_ANSWER_DONE;
}

/* The call is taken on; some time it is done, if its worker does not die. */
static SagaAnswerKind
take_on(Place *p)
{
	p->key = KEY_ACCEPTED;
	if (!p->completing && (honest || chance(800)))
	{
		p->completing = true;
		post(chance(200) ? now : now + rnd(90) * SAGA_SECOND, MSG_COMPLETE,
			 (int) (p - places), SAGA_ANSWER_DONE);
		if (chance(300))
			post(now + rnd(40) * SAGA_SECOND, MSG_HEARTBEAT,
				 (int) (p - places), SAGA_ANSWER_DONE);
	}
	return SAGA_ANSWER_ACCEPTED;
}

static SagaAnswerKind
execute_remote(const Call *call)
{
	Place	   *p = &places[call->place];
	SagaAnswerKind answer = mood(p);

	if (call->op == SAGA_OP_CLAIM)
	{
		if (!honest && chance(p->fail))
			return SAGA_ANSWER_DECLINED + rnd(3);
		if (p->key == KEY_DONE)
			return SAGA_ANSWER_DONE;
		p->key = KEY_REFUSED;
		trace("  key refused: %s %s", p->name, p->undo ? "undo" : "action");
		return SAGA_ANSWER_REFUSED;
	}
	if (p->key == KEY_DONE && (honest || !chance(p->fail)))
		return SAGA_ANSWER_DONE;
	if (p->key == KEY_REFUSED)
		return SAGA_ANSWER_REFUSED;
	if (p->key == KEY_ACCEPTED)
		return take_on(p);
	if (answer != SAGA_ANSWER_DONE)
		return answer;
	if (p->key == KEY_DONE)
		return SAGA_ANSWER_TRANSIENT;
	if (p->undo && call->conditional)
	{
		Place	   *action = action_of(p);

		if (action->key == KEY_FREE || action->key == KEY_ACCEPTED)
			action->key = KEY_REFUSED;
		if (action->key == KEY_REFUSED)
		{
			cov[COV_UNDO_NOTHING]++;
			p->key = KEY_DONE;
			return SAGA_ANSWER_DONE;
		}
		cov[COV_UNDO_RUN]++;
	}
	if (p->callback)
	{
		cov[COV_UNDO_ACCEPTED] += p->undo;
		return take_on(p);
	}
	act(call->place);
	return SAGA_ANSWER_DONE;
}

SagaAnswerKind
execute(Call *call, int64 *value)
{
	if (call->local)
		return execute_local(call, value);
	if (call->timed_out || call->epoch != epoch)
		cov[COV_LATE_EFFECT]++;
	return execute_remote(call);
}

/* What was accepted comes to its end, unless it was refused meanwhile. */
void
complete(int place)
{
	Place	   *p = &places[place];
	SagaAnswerKind answer = honest || chance(700) ? SAGA_ANSWER_DONE :
		SAGA_ANSWER_DECLINED + rnd(3);

	p->completing = false;
	if (p->key != KEY_ACCEPTED)
		return;
	if (answer == SAGA_ANSWER_DONE)
		act(place);
	else
	{
		p->key = KEY_FREE;
		cov[COV_COMPLETED_FAIL]++;
	}
	put_inbox(SAGA_EVENT_COMPLETED, place, answer, 0);
	if (!honest && answer == SAGA_ANSWER_DONE && chance(100))
		put_inbox(SAGA_EVENT_COMPLETED, place, answer, 0);
}
