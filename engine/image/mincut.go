package image

import (
	"context"
	"math"
)

// gridCut splits the pixels of a grid into two sides at the least cost: each pixel has a price for either side, and each pair of
// neighbours one for being apart. It is the algorithm of Boykov and Kolmogorov (2004): two trees grow from the two sides until
// they touch, flow is pushed along the path, and what that cuts off is adopted again.
type gridCut struct {
	width, height int
	// terminal is what is left of the price for being on the far side, where positive, or on the near side, where negative.
	terminal []float32
	// links is what may still flow to the neighbour in each direction.
	links [8][]float32

	side   []int8
	parent []int8
	// age is the round in which reach, the distance to the root, was last known to be right.
	age, reach []int32
	round      int32

	active, orphans []int32
	queued          []bool
}

// The sides of a cut, and what a pixel's parent may be beside a direction.
const (
	cutFree, cutNear, cutFar = 0, 1, -1
	cutRoot, cutNone         = 8, 9
)

// cutSteps are the directions; direction d and d^1 are opposite.
var cutSteps = [8][2]int{{1, 0}, {-1, 0}, {0, 1}, {0, -1}, {1, 1}, {-1, -1}, {1, -1}, {-1, 1}}

func newGridCut(width, height int) *gridCut {
	n := width * height
	g := &gridCut{
		width: width, height: height, terminal: make([]float32, n), side: make([]int8, n), parent: make([]int8, n),
		age: make([]int32, n), reach: make([]int32, n), queued: make([]bool, n),
	}
	for d := range g.links {
		g.links[d] = make([]float32, n)
	}
	return g
}

// next is the neighbour of pixel i in a direction, or -1 beyond the grid.
func (g *gridCut) next(i int32, direction int) int32 {
	x, y := int(i)%g.width+cutSteps[direction][0], int(i)/g.width+cutSteps[direction][1]
	if x < 0 || y < 0 || x >= g.width || y >= g.height {
		return -1
	}
	return int32(y*g.width + x)
}

// open is what may flow along a tree's edge from i in the direction: away from the root in the near tree, towards it in the far tree.
func (g *gridCut) open(side int8, i, j int32, direction int) float32 {
	if side == cutNear {
		return g.links[direction][i]
	}
	return g.links[direction^1][j]
}

// solve finds the cut; near says of each pixel whether it is on the near side. It gives up on finding the very best cut after a number of
// paths that real pictures do not reach; the sides found so far are then the answer.
func (g *gridCut) solve(ctx context.Context) (near []bool, err error) {
	for i, t := range g.terminal {
		g.parent[i] = cutNone
		if t == 0 {
			continue
		}
		g.side[i] = cutNear
		if t < 0 {
			g.side[i] = cutFar
		}
		g.parent[i], g.reach[i] = cutRoot, 1
		g.activate(int32(i))
	}
	for paths := 0; paths < 50*len(g.terminal); paths++ {
		if paths%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		i, direction := g.grow()
		if i < 0 {
			break
		}
		g.round++
		g.push(i, direction)
		g.adopt()
	}
	near = make([]bool, len(g.side))
	for i, s := range g.side {
		near[i] = s == cutNear
	}
	return near, nil
}

func (g *gridCut) activate(i int32) {
	if !g.queued[i] {
		g.queued[i] = true
		g.active = append(g.active, i)
	}
}

// grow lets the trees take free pixels until they touch; it returns the near pixel of the touch and the direction of the far one.
func (g *gridCut) grow() (from int32, direction int) {
	for head := 0; head < len(g.active); head++ {
		i := g.active[head]
		side := g.side[i]
		if side != cutFree {
			for d := range cutSteps {
				j := g.next(i, d)
				if j < 0 || g.open(side, i, j, d) <= 0 {
					continue
				}
				switch g.side[j] {
				case cutFree:
					g.side[j], g.parent[j] = side, int8(d^1)
					g.age[j], g.reach[j] = g.age[i], g.reach[i]+1
					g.activate(j)
				case side:
					if g.age[j] <= g.age[i] && g.reach[j] > g.reach[i] {
						g.parent[j], g.age[j], g.reach[j] = int8(d^1), g.age[i], g.reach[i]+1
					}
				default:
					g.active = g.active[head:] // this pixel may touch more
					if side == cutNear {
						return i, d
					}
					return j, d ^ 1
				}
			}
		}
		g.queued[i] = false
	}
	g.active = g.active[:0]
	return -1, 0
}

// push sends as much flow as fits along the path from the near root over the touch to the far root.
func (g *gridCut) push(from int32, direction int) {
	to := g.next(from, direction)
	flow := g.links[direction][from]
	for i := from; ; {
		p := int(g.parent[i])
		if p == cutRoot {
			flow = min(flow, g.terminal[i])
			break
		}
		j := g.next(i, p)
		flow = min(flow, g.links[p^1][j])
		i = j
	}
	for i := to; ; {
		p := int(g.parent[i])
		if p == cutRoot {
			flow = min(flow, -g.terminal[i])
			break
		}
		flow = min(flow, g.links[p][i])
		i = g.next(i, p)
	}
	g.links[direction][from] -= flow
	g.links[direction^1][to] += flow
	for i := from; ; {
		p := int(g.parent[i])
		if p == cutRoot {
			g.terminal[i] -= flow
			g.cutOff(i, g.terminal[i] <= 0)
			break
		}
		j := g.next(i, p)
		g.links[p][i] += flow
		g.links[p^1][j] -= flow
		g.cutOff(i, g.links[p^1][j] <= 0)
		i = j
	}
	for i := to; ; {
		p := int(g.parent[i])
		if p == cutRoot {
			g.terminal[i] += flow
			g.cutOff(i, g.terminal[i] >= 0)
			break
		}
		j := g.next(i, p)
		g.links[p][i] -= flow
		g.links[p^1][j] += flow
		g.cutOff(i, g.links[p][i] <= 0)
		i = j
	}
}

// cutOff makes an orphan of a pixel when the edge to its parent is full.
func (g *gridCut) cutOff(i int32, full bool) {
	if full {
		g.parent[i] = cutNone
		g.orphans = append(g.orphans, i)
	}
}

// adopt finds each orphan a parent in its tree that leads to the root, the nearest one, or sets it free.
func (g *gridCut) adopt() {
	for len(g.orphans) > 0 {
		i := g.orphans[len(g.orphans)-1]
		g.orphans = g.orphans[:len(g.orphans)-1]
		side := g.side[i]
		best, least := -1, int32(math.MaxInt32)
		for d := range cutSteps {
			j := g.next(i, d)
			if j < 0 || g.side[j] != side || g.open(side, j, i, d^1) <= 0 {
				continue
			}
			if far, ok := g.rooted(j); ok && far < least {
				best, least = d, far
			}
		}
		if best >= 0 {
			g.parent[i], g.age[i], g.reach[i] = int8(best), g.round, least+1
			continue
		}
		for d := range cutSteps {
			j := g.next(i, d)
			if j < 0 || g.side[j] != side {
				continue
			}
			if g.open(side, j, i, d^1) > 0 {
				g.activate(j)
			}
			if p := int(g.parent[j]); p < cutRoot && g.next(j, p) == i {
				g.parent[j] = cutNone
				g.orphans = append(g.orphans, j)
			}
		}
		g.side[i], g.parent[i], g.age[i] = cutFree, cutNone, 0
	}
}

// rooted follows the parents of a pixel and says how far its root is, if it has one. What it learns is marked with this round.
func (g *gridCut) rooted(i int32) (far int32, ok bool) {
	steps := int32(0)
	j := i
	for {
		if g.age[j] == g.round {
			far = steps + g.reach[j]
			break
		}
		p := int(g.parent[j])
		if p == cutNone {
			return 0, false
		}
		steps++
		if p == cutRoot {
			g.age[j], g.reach[j] = g.round, 1
			far = steps
			break
		}
		j = g.next(j, p)
	}
	for j, d := i, far; g.age[j] != g.round; d-- {
		g.age[j], g.reach[j] = g.round, d
		j = g.next(j, int(g.parent[j]))
	}
	return far, true
}
