/*
 * sim_measure.c
 *		How fast the machine is alone, and how much memory its states take: a
 *		chain of steps, and ten thousand elements (see machine_sim.c).
 */
#include "sim.h"

#define ELEMENTS 10000

static size_t counted;

static void *
counting_alloc(SagaArena *arena, size_t size)
{
	counted += size;
	return live_arena.alloc(&live_arena, size);
}

static double
seconds_since(const struct timespec *t0)
{
	struct timespec t1;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t1);
	return (double) (t1.tv_sec - t0->tv_sec) +
		(double) (t1.tv_nsec - t0->tv_nsec) / 1e9;
}

static void
plain_graph(int n)
{
	static int32 before[MAX_NODES];

	memset(&graph, 0, sizeof(graph));
	memset(nodes, 0, sizeof(nodes));
	graph.nnodes = n;
	graph.nodes = nodes;
	for (int i = 0; i < n; i++)
	{
		nodes[i].name = "step";
		nodes[i].has_compensation = true;
		nodes[i].retry.initial_interval = SAGA_SECOND;
		nodes[i].undo_retry.initial_interval = SAGA_SECOND;
		before[i] = i - 1;
		nodes[i].deps = &before[i];
		nodes[i].ndeps = i > 0;
	}
	reset_pool(&graph_arena);
	reset_pool(&out_arena);
	memset(&out, 0, sizeof(out));
	out.arena = &out_arena;
}

/* Four remote steps, nothing fails, nothing is checked. */
static void
measure_chain(void)
{
	struct timespec t0;
	int64		n = 0;
	SagaGraphFault fault;
	SagaState  *state;

	plain_graph(4);
	saga_graph_finish(&graph, NULL, &graph_arena, &fault, 1);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	for (int k = 0; k < 200000; k++)
	{
		SagaEvent	event = make_event(SAGA_EVENT_START);

		reset_pool(&live_arena);
		state = saga_machine_create(&graph, SAGA_NEVER, &live_arena);
		for (int i = -1; i < 4; i++, n++)
		{
			out.nrecords = out.ncommands = 0;
			saga_machine_decide(state, &event, now, &out);
			event.kind = SAGA_EVENT_ANSWER;
			event.node = i + 1;
		}
	}
	printf("machine alone, 4 steps: %.2f million transitions/s, a state takes"
		   " %zu bytes\n", (double) n / seconds_since(&t0) / 1e6,
		   saga_machine_size(&graph));
}

/* The calls of the last decision, to be answered in random order. */
static int32 pending[ELEMENTS + 1];
static int	npending;

static void
decide_on(SagaState *state, SagaEvent *event)
{
	out.nrecords = out.ncommands = 0;
	saga_machine_decide(state, event, now, &out);
	for (int i = 0; i < out.ncommands; i++)
		if (out.commands[i].kind == SAGA_CMD_CALL)
			pending[npending++] = out.commands[i].node;
}

static int64
answer_all(SagaState *state, SagaOp op, int fails)
{
	int64		n = 0;

	while (npending > 0)
	{
		SagaEvent	event = make_event(SAGA_EVENT_ANSWER);
		int			i = rnd(npending);

		event.node = pending[i];
		event.op = op;
		pending[i] = pending[--npending];
		if (chance(fails))
			event.answer = SAGA_ANSWER_TRANSIENT;
		decide_on(state, &event);
		n++;
		while (npending == 0 && saga_machine_next_due(state) != SAGA_NEVER)
		{
			now = Max(now, saga_machine_next_due(state));
			event = make_event(SAGA_EVENT_TIMER);
			decide_on(state, &event);
		}
	}
	return n;
}

/*
 * Ten thousand elements at once, each of which fails now and then; then the
 * step after them is declined, and all are undone.
 */
static void
measure_elements(int max_parallel, SagaUndoOrder order)
{
	static SagaScope scopes[2] = {{0, 2, -1}, {2, 1, -1}};
	struct timespec t0;
	SagaArena	arena = {counting_alloc, NULL};
	SagaEvent	event = make_event(SAGA_EVENT_START);
	SagaGraphFault fault;
	SagaState  *state;
	int64		n;

	plain_graph(3);
	graph.nscopes = 2;
	graph.scopes = scopes;
	graph.undo_order = order;
	nodes[0].kind = SAGA_NODE_EACH;
	nodes[0].body = 1;
	nodes[0].max_parallel = max_parallel;
	nodes[2].ndeps = 0;
	saga_graph_finish(&graph, NULL, &graph_arena, &fault, 1);
	reset_pool(&live_arena);
	counted = 0;
	npending = 0;
	state = saga_machine_create(&graph, SAGA_NEVER, &arena);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	decide_on(state, &event);
	event = make_event(SAGA_EVENT_ANSWER);
	event.node = pending[--npending];
	event.op = SAGA_OP_EVAL;
	event.value = ELEMENTS;
	decide_on(state, &event);
	while (npending > 1 || state->steps[1].status == SAGA_STEP_IDLE)
		answer_all(state, SAGA_OP_ACTION, 100);
	n = state->seq;
	CHECK(state->state == SAGA_COMPLETED, "ten thousand elements: %s",
		  saga_state_name(state->state));
	printf("%d elements, at most %d at a time, %s: %lld records,"
		   " %.2f us each; ", ELEMENTS, max_parallel,
		   order == SAGA_UNDO_REVERSE ? "reverse" : "graph", (long long) n,
		   seconds_since(&t0) * 1e6 / (double) n);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t0);
	event = make_event(SAGA_EVENT_VERB);
	event.verb = SAGA_VERB_UNDO_COMPLETED;
	decide_on(state, &event);
	answer_all(state, SAGA_OP_UNDO, 100);
	CHECK(state->state == SAGA_COMPENSATED, "ten thousand elements: %s",
		  saga_state_name(state->state));
	printf("undo %.2f us each; %.0f bytes an element\n",
		   seconds_since(&t0) * 1e6 / (double) (state->seq - n),
		   (double) counted / ELEMENTS);
}

void
measure(void)
{
	measure_chain();
	measure_elements(0, SAGA_UNDO_GRAPH);
	measure_elements(16, SAGA_UNDO_REVERSE);
}
